import torch
from your_network import YourNetwork

import secateur

model, image = YourNetwork(), torch.randn(1, 3, 64, 96)
result = secateur.prune(model, image, method="l1", budget={"params": 0.5})
print(result)  # before, after, and what was left alone and why

secateur.save("small.safetensors", result.model, result.plan)
small = secateur.load("small.safetensors", YourNetwork())
assert torch.equal(small.eval()(image), result.model.eval()(image))
