"""After fork: a child's use of the device is refused, and the parent's is not disturbed."""

from __future__ import annotations

from .conftest import Script


def test_a_child_is_refused(script: Script) -> None:
    done = script(
        """
        import threading
        open_window()
        other = _mmio.Window(4096, name="zapped"); other.map(0, 4096, fd, 0)
        other_mmio = _mmio.Mmio(other, 0, 4096, [(0, 4096)]); other_view = memoryview(other_mmio); other.zap()
        assert other_view[0] == 255  # a page of ones lies in it when the child is made
        mmio.write32(0, 7)
        child = os.fork()
        if child == 0:
            assert window.state == _mmio.STATE_FORKED and other.state == _mmio.STATE_FORKED
            assert bytes(view[:4]) == bytes([255] * 4) and other_view[1] == 255
            view[0:4] = bytes(4)
            for use in (lambda: mmio.read32(0), lambda: mmio.write32(0, 1), lambda: window.zap(),
                        lambda: window.revive(fd), lambda: window.lock_write(1), lambda: window.wait_live(1),
                        lambda: other_mmio.read32(0), lambda: window.map(65536, 4096, fd, 0),
                        lambda: mmio.access().__enter__(), lambda: mmio.poll(0, 4, 0, 0, 1),
                        lambda: _mmio.Mmio(window, 0, 0, [])):
                try:
                    use()
                except ForkedError as error:
                    assert isinstance(error, ClosedError) and "parent" in str(error)
                else:
                    raise AssertionError("not refused")
            window.close(); window.close()
            assert bytes(view[8:12]) == bytes([255] * 4)  # the view is still out
            mine = _mmio.Window(4096, name="the child's own"); mine.map(0, 4096, fd, 0)
            mine_mmio = _mmio.Mmio(mine, 0, 4096, [(0, 4096)])
            assert mine_mmio.read32(0) == 7
            worker = threading.Thread(target=lambda: mine_mmio.write32(4, 9)); worker.start(); worker.join()
            mine.zap(); assert memoryview(mine_mmio)[0] == 255; mine.revive(fd); assert mine_mmio.read32(4) == 9
            mine.close()
            os._exit(17)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
        assert mmio.read32(0) == 7 and mmio.read32(4) == 9
        assert bytes(view[:4]) == b"\\x07\\0\\0\\0"
        window.zap(); window.revive(fd); assert mmio.read32(0) == 7
        print("alive")
        """
    )
    assert done.stdout == "alive\n", done


def test_a_fork_inside_of_sections_and_locks(script: Script) -> None:
    """The child leaves what its thread held; what other threads held does not exist there."""
    done = script(
        """
        import threading
        open_window()
        other = _mmio.Window(4096, name="other"); other.map(0, 4096, fd, 0)
        other_mmio = _mmio.Mmio(other, 0, 4096, [(0, 4096)])
        inside, leave = threading.Event(), threading.Event()
        def read():
            with other_mmio.access():
                inside.set(); leave.wait(20)
        reader = threading.Thread(target=read); reader.start(); inside.wait()
        with mmio.access():
            child = os.fork()
        if child == 0:
            assert window.read_depth() == 0 and _mmio.read_sections() == 0
            assert other.holders() == []
            other.close(); window.close()
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert len(other.holders()) == 1
        leave.set(); reader.join()
        window.lock_write(1)
        child = os.fork()
        if child == 0:
            assert window.holders()[0][0] == os.getpid() == threading.get_native_id()
            window.unlock_write()
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        window.unlock_write()
        print("alive")
        """
    )
    assert done.stdout == "alive\n", done


def test_forks_while_other_threads_read_zap_and_open(script: Script) -> None:
    """No mutex of ours is left locked in a child."""
    done = script(
        """
        import threading, time, warnings
        warnings.simplefilter("ignore")
        open_window()
        stop = threading.Event()
        def read():
            while not stop.is_set():
                try: mmio.read32(0)
                except ZappedError: pass
                view[0]
        def zap():
            while not stop.is_set():
                window.zap(timeout=10); window.revive(fd, timeout=10)
        def open_and_close():
            while not stop.is_set():
                w = _mmio.Window(4096); w.map(0, 4096, fd, 0); _mmio.Mmio(w, 0, 4096, [(0, 4096)]).read32(0); w.close()
        def come_and_go():
            while not stop.is_set():
                t = threading.Thread(target=lambda: view[0]); t.start(); t.join()
        threads = [threading.Thread(target=work) for work in (read, zap, open_and_close, come_and_go)]
        for thread in threads: thread.start()
        end = time.monotonic() + 2
        forks = 0
        while time.monotonic() < end:
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                try:
                    mmio.read32(0)
                except ForkedError:
                    pass
                assert view[0] == 255
                w = _mmio.Window(4096); w.map(0, 4096, fd, 0)
                m = _mmio.Mmio(w, 0, 4096, [(0, 4096)]); m.read32(0); w.zap(); w.revive(fd); w.close()
                window.close()
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == 0, status
            forks += 1
        stop.set()
        for thread in threads: thread.join()
        assert forks > 10, forks
        print("alive")
        """,
        timeout=50,
    )
    assert done.stdout == "alive\n", done
