import torch, rsk
from rsk.synthetic import make_batch
for V in (129, 5000):
    for dt in (torch.float32, torch.float16):
        b = make_batch(3, 4, V, dtype=dt, device="cuda")
        for n, f in rsk.KERNELS.items():
            f(*b, seed=1); f(b[0], None, b[2], seed=1)
            f(b[0], b[2][:, :4] * 2, b[2], seed=2)
torch.cuda.synchronize(); print("sanitize done")
