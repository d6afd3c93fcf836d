"""The peer's side of the machine's limits, as limits.ts measures ours:  python limits.py THREADS [cpu|cuda]"""
import json, sys, time
import torch

SIDE, COUNT, TRIES = 2048, 2**26, 6
torch.set_num_threads(int(sys.argv[1]))
DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cpu"
sync = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None


def fastest(work):
    def once():
        sync(); t = time.perf_counter(); work(); sync(); return time.perf_counter() - t
    return min(once() for _ in range(TRIES))


with torch.inference_mode():
    a = torch.ones(SIDE, SIDE, device=DEVICE); half = a.to(torch.bfloat16); line = torch.ones(COUNT, device=DEVICE)
    print(json.dumps(dict(float32=2 * SIDE**3 / fastest(lambda: a @ a), bfloat16=2 * SIDE**3 / fastest(lambda: half @ half),
                          read=4 * COUNT / fastest(lambda: line.sum()))))
