import torch
from torch.nn.functional import cross_entropy
from your_network import YourNetwork

import secateur

model = YourNetwork()
loader = [(torch.randn(4, 3, 64, 96), torch.randint(5, (4, 64, 96))) for _ in range(3)]  # your data
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
pruner = secateur.Pruner(model, loader[0][0], method="cap")
for epoch in range(2):
    for images, labels in loader:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
    pruner.after_epoch(epoch)
result = pruner.finish(budget={"params": 0.5})
