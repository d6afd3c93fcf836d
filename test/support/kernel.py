"""A kernel driven by JSON lines: one request a line on stdin, one answer a line on stdout. See kernel.ts for the requests."""
import json
import queue
import subprocess
import sys
import threading
import time

from jupyter_client.manager import KernelManager


def run(client, manager, code, interrupt_after=None, timeout=120):
    """Runs one cell and gathers its messages until the kernel is idle and has replied."""
    start = time.time()
    ident = client.execute(code)
    timer = None
    if interrupt_after is not None:
        timer = threading.Timer(interrupt_after, manager.interrupt_kernel)
        timer.start()
    outputs, idle = [], None
    while idle is None:
        message = client.get_iopub_msg(timeout=timeout)
        if message["parent_header"].get("msg_id") != ident:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "status":
            if content["execution_state"] == "idle":
                idle = time.time() - start
        else:
            outputs.append({"type": kind, "seconds": time.time() - start, **content})
    while True:
        reply = client.get_shell_msg(timeout=timeout)
        if reply["parent_header"].get("msg_id") == ident:
            break
    if timer:
        timer.cancel()
    return {"status": reply["content"]["status"], "reply": reply["content"], "outputs": outputs, "seconds": idle}


def several(client, codes):
    """Sends cells at once, as "run all" does, and gives the statuses of their replies in order."""
    idents = [client.execute(code) for code in codes]
    replies = {}
    while len(replies) < len(idents):
        reply = client.get_shell_msg(timeout=60)
        replies[reply["parent_header"].get("msg_id")] = reply["content"]["status"]
    return [replies[ident] for ident in idents]


def answer(client, manager, request):
    kind = request.pop("kind")
    if kind == "run":
        return run(client, manager, **request)
    if kind == "several":
        return several(client, request["codes"])
    if kind == "info":
        return client.kernel_info(reply=True, timeout=30)["content"]
    call = client.complete if kind == "complete" else client.inspect
    return call(request["code"], request["position"], reply=True, timeout=60)["content"]


def begin(folder):
    manager = KernelManager(kernel_name="vitrine")
    # Our stdout carries the answers: node would make it non-blocking if the kernel had it too.
    manager.start_kernel(cwd=folder, stdout=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
    except RuntimeError:
        client.stop_channels()
        raise
    return manager, client


def main(folder):
    start = time.time()
    try:
        manager, client = begin(folder)
    except RuntimeError as error:
        if "died" not in str(error):
            raise
        manager, client = begin(folder)  # as JupyterLab does: its ports were taken by another program between choosing and opening them
    print(json.dumps({"ready": time.time() - start}), flush=True)
    try:
        for line in sys.stdin:
            try:
                result = {"ok": answer(client, manager, json.loads(line))}
            except queue.Empty:
                result = {"error": "the kernel did not answer in time"}
            except Exception as error:  # the test must see it, whatever it is
                result = {"error": repr(error)}
            print(json.dumps(result, default=str), flush=True)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


main(sys.argv[1])
