"""What `secateur inspect` and `Graph.explain` say and draw: golden tables, JSON keys, SVG, DOT, mistakes."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import zoo
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur
from secateur.cli import app
from secateur.costs import CostModel
from secateur.report import couplings_dot, couplings_svg, groups_data, groups_table

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"

UNET = """\
group         units  params %  MACs %
d1.0              8      22.5    38.0
    tensors  d1.{0.weight, 1.*}, d2.0.weight[1], u1.0.weight[1]
    coupled  concat in MiniUNet beside u2.0; read by d2.0, u1.0
d1.0.weight       3       2.9     8.1
    pinned: input of a convolution that is fixed in d1.0 (zoo.py:N)
    tensors  d1.0.weight[1]
d2.0             12      52.6    24.4
    tensors  d2.{0.weight, 1.*}, d3.0.weight[1], u2.0.weight[1]
    coupled  concat in MiniUNet beside up2; read by d3.0, u2.0
d3.0             16      32.3     5.6
    tensors  d3.{0.weight, 1.*}, up2.weight
    coupled  read by up2
up2              10      23.3    11.7
    tensors  up2.weight[1], up2.bias, u2.0.weight[1]
    coupled  concat in MiniUNet beside d2.0; read by u2.0
u2.0             12      43.9    54.9
    tensors  u2.{0.weight, 1.*}, u1.0.weight[1]
    coupled  concat in MiniUNet beside d1.0; read by u1.0
u1.0              8      20.1    55.8
    tensors  u1.{0.weight, 1.*}, head.weight[1]
    coupled  read by head
head              5       0.6     1.5
    pinned: output of the network: convolution in head (zoo.py:N)
    tensors  head.*
74 units in 8 groups, 66 prunable
params 7,431  macs 849,280  paper_flops 873,760  yolo_flops 1,718,080
"""

RESIDUAL = """\
group            units  params %  MACs %
stem.0               8      27.2    57.5
    tensors  stem.{0.weight, 1.*}, blocks.0.{conv1.weight[1], conv2.weight, bn2.*},
             blocks.1.conv1.weight[1], blocks.1.down.0.weight[1]
    coupled  residual sum in blocks.0; read by blocks.0.conv1, blocks.1.conv1, blocks.1.down.0
stem.0.weight        3       2.2    21.3
    pinned: input of a convolution that is fixed in stem.0 (zoo.py:N)
    tensors  stem.0.weight[1]
blocks.0.conv1       8      11.9    28.3
    tensors  blocks.0.{conv1.weight, bn1.*, conv2.weight[1]}
    coupled  read by blocks.0.conv2
blocks.1.conv1      16      35.4    21.3
    tensors  blocks.1.{conv1.weight, bn1.*, conv2.weight[1]}
    coupled  read by blocks.1.conv2
blocks.1.conv2      16      73.2    43.3
    tensors  blocks.1.{conv2.weight, bn2.*}, blocks.1.down.{0.weight, 1.*},
             blocks.2.{conv1.weight[1], conv2.weight, bn2.*}, fc.weight[1]
    coupled  residual sum in blocks.1, blocks.2; read by blocks.2.conv1, fc
blocks.2.conv1      16      47.1    28.3
    tensors  blocks.2.{conv1.weight, bn1.*, conv2.weight[1]}
    coupled  read by blocks.2.conv2
fc                   5       0.9     0.0
    pinned: output of the network: addmm in fc (zoo.py:N)
    tensors  fc.*
72 units in 7 groups, 64 prunable
params 9,853  macs 325,200  paper_flops 341,205  yolo_flops 661,290
"""

PINNED = """\
group        units  params %  MACs %
a.0              8      53.6    54.4
    tensors  a.{0.weight, 1.*}, b.0.weight[1]
    coupled  read by b.0
a.0.weight       3      10.6    10.9
    pinned: input of a convolution that is fixed in a.0 (zoo.py:N)
    tensors  a.0.weight[1]
b.0             12      85.7    87.1
    pinned: split_with_sizes into unequal parts [5, 7] (zoo.py:N)
    tensors  b.{0.weight, 1.*}, c.0.weight[1]
    coupled  concat in Baked; read by c.0
c.0              8      45.0    45.6
    tensors  c.{0.weight, 1.*}, head.weight[1]
    coupled  read by head
head             5       2.2     2.0
    pinned: output of the network: convolution in head (zoo.py:N)
    tensors  head.*
36 units in 5 groups, 16 prunable
params 2,045  macs 634,880  paper_flops 663,360  yolo_flops 1,290,880
"""


def traced(name: str) -> secateur.Graph:
    return secateur.trace(zoo.build(name), zoo.example(1))


def without_lines(text: str) -> str:
    return re.sub(r"(\w+\.py):\d+", r"\1:N", text)


def inspect(*arguments: str):
    return CliRunner().invoke(app, ["inspect", *(str(argument) for argument in arguments)])


MINI = (f"{zoo.__file__}:MiniUNet", "--input", "3x16x20")


# -- the table ---


@pytest.mark.parametrize(
    ("name", "expected"), [("unet", UNET), ("resnet_basic", RESIDUAL), ("baked", PINNED)], ids=lambda item: item[:12]
)
def test_the_table_tells_groups_tensors_couplings_and_pins(name: str, expected: str) -> None:
    graph = traced(name)
    assert without_lines(groups_table(graph, groups_data(graph))) + "\n" == expected


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("segnet", "max-unpooling with shared indices in MiniSegNet"),
        ("inverted", "depthwise convolution in depth.0"),
        ("resnext", "groups of a convolution in blocks.0.conv2"),
        ("squeeze_excite", "element by element (mul) in SqueezeExcite"),
        ("norms", "pixel shuffle in shuffle"),
        ("chunk_shuffle", "split into equal parts in ChunkShuffle"),
        ("unknown", "no rule for linalg_matrix_exp (zoo.py:N)"),
    ],
)
def test_what_joins_channels_has_a_name(name: str, told: str) -> None:
    graph = traced(name)
    # An item may stand at the end of a line.
    assert told in " ".join(without_lines(groups_table(graph, groups_data(graph))).split())


def test_lines_fit_100_columns_and_long_names_are_cut_in_the_middle() -> None:
    model: nn.Module = zoo.build("dense")
    for level in range(12):
        inner, model = model, nn.Sequential()
        model.add_module(f"a_long_name_of_level_{level}", inner)
    graph = secateur.trace(model, zoo.example(1))
    table = groups_table(graph, groups_data(graph))
    assert max(map(len, table.splitlines())) <= 100
    assert re.search(r"^a_long_name\S*\.\.\.\S*\.convs\.0 ", table, re.MULTILINE)
    assert "more" in table


def test_a_single_unit_says_that_it_stays() -> None:
    graph = traced("shuffle")
    assert "g1" in [group.name for group in graph.groups if len(group) == 1]
    assert "stays: it has one unit, and one must stay" in groups_table(graph, groups_data(graph))


def test_a_size_written_in_the_code_is_told_with_module_and_line() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).view(1, 8, 16 * 20).sum(1)

    model = nn.Sequential(Literal())
    group = secateur.trace(model, zoo.example(1)).find("0.conv")[0]
    assert group.place is not None and group.place.module == "0" and group.place.source.startswith("test_inspect.py:")
    assert "a size is written in the code" in group.why and group.why.endswith(group.place.where)


# -- data ---


def test_the_keys_of_the_json_are_those_of_its_page() -> None:
    result = inspect(*MINI, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    document = json.loads(result.stdout)
    page = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")

    def documented(heading: str) -> list[str]:
        table = page.split(f"### {heading}")[1].split("\n### ")[0]
        return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)

    assert list(document) == documented("The document")
    for group in document["groups"]:
        assert list(group) == documented("A group")
        for coupling in group["couplings"]:
            assert list(coupling) == documented("A coupling")
            assert coupling["role"] in ("joins", "reads", "layer")
    assert any(group["couplings"] for group in document["groups"])


def test_the_json_says_what_the_table_says() -> None:
    document = json.loads(inspect(*MINI, "--json").stdout)
    groups = {group["name"]: group for group in document["groups"]}
    assert document["input"] == [3, 16, 20] and document["units"] == sum(group["units"] for group in groups.values())
    assert groups["d1.0"]["prunable"] and groups["d1.0"]["pinned"] is None and groups["d1.0"]["pinned_by"] is None
    assert groups["head"]["pinned"] == "output of the network" and not groups["head"]["prunable"]
    assert {**groups["head"]["pinned_by"], "source": ""} == {"operator": "convolution", "module": "head", "source": ""}
    (concat,) = (coupling for coupling in groups["up2"]["couplings"] if coupling["what"] == "concat")
    assert concat["operator"] == "cat" and concat["beside"] == ["d2.0"] and concat["role"] == "joins"
    assert groups["up2"]["members"] == [["up2.weight", 1], ["up2.bias", 0], ["u2.0.weight", 1]]
    # One channel of up2: 16 x 2 x 2 weights and a bias there, 12 x 3 x 3 weights in u2.0.
    assert groups["up2"]["unit_params"] == 16 * 4 + 1 + 12 * 9


def test_a_tensor_that_only_training_uses_is_coupled_too() -> None:
    graph = traced("pyramid")
    (aux,) = (group for group in groups_data(graph)["groups"] if group["name"] == "aux.0")
    assert [coupling["module"] for coupling in aux["couplings"]] == ["aux.1", "aux.4"]


# -- pictures ---


def owners(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[0] for name, _ in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_svg_is_xml_and_names_every_module_and_group(name: str) -> None:
    graph = traced(name)
    svg = ET.fromstring(couplings_svg(graph, groups_data(graph)))
    titles = [title.text or "" for title in svg.iter(f"{SVG}title")]
    shown = {title.partition(":")[0] for title in titles}
    assert owners(graph.model) <= shown and {group.name for group in graph.groups} <= shown
    for group in graph.groups:  # pinned ones are grey, with the reason as tooltip
        (part,) = (
            g for g in svg.findall(f"{SVG}g") if (g[0].text or "").startswith(f"{group.name}: {len(group)} unit")
        )
        assert (part.get("fill") == "#9aa0a6") == (group.pinned is not None)
        assert group.why is None or group.why in part[0].text
    assert "http" not in couplings_svg(graph, groups_data(graph)).replace("http://www.w3.org/2000/svg", "")


def test_everything_in_the_svg_is_inside_of_it() -> None:
    graph = traced("dense")
    svg = ET.fromstring(couplings_svg(graph, groups_data(graph)))
    width, height = float(svg.get("width")), float(svg.get("height"))
    for element in svg.iter():
        assert 0 <= float(element.get("x", 0)) + float(element.get("width", 0)) <= width
        assert 0 <= float(element.get("y", 0)) + float(element.get("height", 0)) <= height


def test_bands_in_one_lane_do_not_overlap() -> None:
    graph = traced("dense")
    svg = ET.fromstring(couplings_svg(graph, groups_data(graph)))
    spans: dict[str, list[tuple[float, float]]] = {}
    for line in svg.iter(f"{SVG}line"):
        if line.get("stroke-opacity"):
            spans.setdefault(line.get("x1"), []).append((float(line.get("y1")), float(line.get("y2"))))
    assert sum(map(len, spans.values())) == len(graph.groups)
    for lane in spans.values():
        lane.sort()
        assert all(above[1] < below[0] for above, below in pairwise(lane))


class Hostile(nn.Module):
    """Names that mean something in XML and in DOT."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module('a<b & "c" \\ \x07', nn.Conv2d(3, 8, 3))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def test_names_are_escaped() -> None:
    graph = secateur.trace(Hostile(), torch.zeros(1, 3, 8, 8))
    data = groups_data(graph)
    svg = ET.fromstring(couplings_svg(graph, data))
    assert 'a<b & "c" \\ ?: Conv2d' in [title.text for title in svg.iter(f"{SVG}title")]
    assert '[label="a<b & \\"c\\" \\\\ \x07", tooltip=' in couplings_dot(graph, data)


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_dot_file_is_made_of_nodes_and_edges_between_them(name: str) -> None:
    graph = traced(name)
    first, font, *lines, last = couplings_dot(graph, groups_data(graph)).splitlines()
    assert first == f'digraph "{type(graph.model).__name__}" {{' and font.startswith("  node [") and last == "}"
    string = r'"(?:[^"\\]|\\.)*"'
    attributes = rf"\[\w+={string}(?:, \w+={string})*\];"
    nodes, edges = set(), []
    for line in lines:
        node = re.fullmatch(rf"  ([gs]\d+) {attributes}", line)
        edge = re.fullmatch(rf"  ([gs]\d+) -> ([gs]\d+) {attributes}", line)
        assert node or edge, line
        if node:
            nodes.add(node[1])
        else:
            edges.append(edge.groups())
    assert {end for edge in edges for end in edge} <= nodes
    assert len([node for node in nodes if node[0] == "g"]) == len(graph.groups)
    for module in owners(graph.model):
        assert f'label="{module}"' in "\n".join(lines)


# -- files ---


def test_pictures_are_written_beside_the_table(tmp_path: Path) -> None:
    plain = inspect(*MINI)
    drawn = inspect(*MINI, "--svg", tmp_path / "a.svg", "--dot", tmp_path / "a.dot")
    assert drawn.exit_code == 0, drawn.output
    assert drawn.stdout == plain.stdout and without_lines(plain.stdout) == UNET
    assert drawn.stderr == f"wrote {tmp_path / 'a.svg'}\nwrote {tmp_path / 'a.dot'}\n"
    ET.parse(tmp_path / "a.svg")
    assert (tmp_path / "a.dot").read_text().startswith('digraph "MiniUNet" {')


def test_files_that_exist_are_overwritten_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text("three years of work")
    refused = inspect(*MINI, "--svg", tmp_path / "a.svg", "--dot", tmp_path / "a.dot")
    assert refused.exit_code == 2 and refused.stdout == ""
    assert "a.svg exists already; choose another name, or overwrite it with --force" in refused.stderr
    assert (tmp_path / "a.svg").read_text() == "three years of work" and not (tmp_path / "a.dot").exists()
    assert inspect(*MINI, "--svg", tmp_path / "a.svg", "--force").exit_code == 0
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("--svg", "missing/a.svg"), "there is no folder missing; make it first"),
        (("--dot", "."), "is not a file; choose another name"),
        (("--svg", "a", "--dot", "./a"), "--svg and --dot both name a; expected two files"),
        (("--svg", "a" * 300), "can't be written: File name too long"),
        (("--svg", "/proc/a.svg"), "a.svg can't be written: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_a_mistake(tmp_path: Path, monkeypatch, files, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = inspect(*MINI, *files, "--force")
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == [] and result.stdout == ""


@pytest.mark.parametrize("page", ["README.md", "docs/inspect.md"])
def test_the_pages_show_what_is_printed_and_drawn(tmp_path: Path, monkeypatch, page: str) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ("examples/your_network.py:YourNetwork", "--input", "3x64x96", "--classes", "5", "--svg")
    printed = inspect(*arguments, tmp_path / "couplings.svg").stdout
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"secateur inspect {' '.join(arguments)} couplings.svg" in text
    (shown,) = re.findall(r"^```text\n(group .*?)(?:\.\.\.\n)?^```$", text, re.DOTALL | re.MULTILINE)
    assert set(shown.splitlines()) <= set(printed.splitlines())
    if page != "README.md":
        assert shown == printed
        assert (tmp_path / "couplings.svg").read_text() == (ROOT / "docs" / "couplings.svg").read_text(encoding="utf-8")


# -- explain ---


def test_explain_tells_share_tensors_operators_and_lines() -> None:
    graph = traced("unet")
    told = without_lines(graph.explain("up2", CostModel(graph)))
    assert told == (
        "up2: 10 units, prunable\n"
        "    share    23.3 % of the parameters and 11.7 % of the MACs; one unit: 173 parameters and 9,920 MACs\n"
        "    tensors  up2.weight dim 1\n"
        "             up2.bias dim 0\n"
        "             u2.0.weight dim 1\n"
        "    coupled  concat (zoo.py:N) beside d2.0\n"
        "             read by u2.0 (zoo.py:N) beside d2.0"
    )
    assert "share    23.3 % of the parameters; one unit: 173 parameters\n" in graph.explain("up2")


@pytest.mark.parametrize(
    ("network", "name", "groups"),
    [
        ("unet", "d1.0", ["d1.0"]),
        ("unet", "d1.0.weight", ["d1.0.weight", "d1.0"]),  # a pinned group bears the name of the tensor
        ("unet", "u1.0.weight", ["d1.0", "u2.0", "u1.0"]),
        ("unet", "d2", ["d1.0", "d2.0"]),
        ("unet", "d1.2", ["d1.0"]),  # a ReLU: what runs through it
        ("tied", "b.weight", ["stem.0"]),  # the second name of a.weight
        ("resnet_basic", "blocks.0", ["stem.0", "blocks.0.conv1"]),
    ],
)
def test_explain_takes_parameters_modules_and_groups(network: str, name: str, groups: list[str]) -> None:
    told = traced(network).explain(name)
    assert [line.partition(":")[0] for line in told.splitlines() if not line.startswith(" ")] == groups


def test_explain_names_the_maps_that_a_sum_joins() -> None:
    told = without_lines(traced("resnet_basic").explain("stem.0"))
    assert "residual sum of stem.0 and blocks.0.conv2 in blocks.0 (zoo.py:N)" in told


def test_explain_says_what_holds_no_channels() -> None:
    with pytest.raises(secateur.SecateurError, match="of Plain holds no channels"):
        traced("plain").explain("a.1.num_batches_tracked")


@pytest.mark.parametrize(("miss", "meant"), [("d1.0.wieght", "d1.0.weight"), ("haed", "head"), ("d1_0", "d1.0")])
def test_a_near_miss_is_answered_with_the_name_that_was_meant(miss: str, meant: str) -> None:
    with pytest.raises(secateur.SecateurError, match=f"is called '{miss}'; known: .*; did you mean '{meant}'"):
        traced("unet").explain(miss)
