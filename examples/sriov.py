"""Split a card: keep its physical function here, and have another process drive a virtual one, by a token.

sudo python examples/sriov.py 0000:01:00.0
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import vfio_user


def drive(address: str, token: str) -> None:
    with vfio_user.open(address, vf_token=token) as vf, vf.dma_alloc(4096) as buffer:
        print(f"process {os.getpid()} has {vf.name}, with an address space of its own: memory at {buffer.iova:#x}")


def main(address: str) -> None:
    token = str(uuid.uuid4())  # who knows it may use the virtual functions
    with vfio_user.create_vfs(address, 1) as vfs, vfio_user.open(address) as pf:
        pf.set_vf_token(token)
        print(f"process {os.getpid()} has {pf.name}, and has made {vfs.addresses[0]}", flush=True)
        try:
            vfio_user.open(vfs.addresses[0]).close()
        except vfio_user.VfioError as error:
            print(f"without the token: {error}", flush=True)
        subprocess.run([sys.executable, __file__, str(vfs.addresses[0]), token], check=True, timeout=60)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        drive(*sys.argv[1:])
    else:
        main(sys.argv[1])
