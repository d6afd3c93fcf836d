"""The peer's side of the machine's limits, as limits.ts measures ours:  python limits.py THREADS"""
import json, sys, time
import torch

SIDE, COUNT, TRIES = 2048, 2**26, 6
torch.set_num_threads(int(sys.argv[1]))


def fastest(work):
    def once():
        t = time.perf_counter(); work(); return time.perf_counter() - t
    return min(once() for _ in range(TRIES))


with torch.inference_mode():
    a = torch.ones(SIDE, SIDE); half = a.to(torch.bfloat16); line = torch.ones(COUNT)
    print(json.dumps(dict(float32=2 * SIDE**3 / fastest(lambda: a @ a), bfloat16=2 * SIDE**3 / fastest(lambda: half @ half),
                          read=4 * COUNT / fastest(lambda: line.sum()))))
