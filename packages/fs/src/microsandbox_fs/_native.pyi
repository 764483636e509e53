import os

__version__: str

def confined() -> bool: ...
def openat2() -> bool: ...

class Broker:
    def __new__(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool,
        ownership: str,
        uid: int,
        gid: int,
        cache: str,
        follow_root: bool,
        cross_mounts: bool,
        link_guard: bool,
        walk: bool,
        watch: bool,
        nodes: int,
        handles: int,
        quota: tuple[int, int] | None,
        counter: str | os.PathLike[str] | None,
    ) -> Broker: ...
    def answer(self, message: bytes) -> bytes | None: ...
    def serve(self, stream: int, threads: int) -> None: ...
    def stop(self) -> None: ...
    def counted(self) -> tuple[int, int] | None: ...
    def is_directory(self) -> bool: ...
    def contained(self) -> bool: ...
    def usage(self) -> tuple[int, int]: ...
