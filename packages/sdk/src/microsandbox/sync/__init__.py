"""The same classes and methods for plain code, without `async` and `await`.

::

    from microsandbox.sync import Sandbox

    with Sandbox.create(image="busybox") as sandbox:
        print(sandbox.exec("uname").stdout_text)

An event loop on a thread of its own does the work. So this can be used on any thread and on several, and also
inside a running event loop, as in a notebook, which then waits. Objects do not survive a `fork`: in the
child they raise `RuntimeError` at once, and new ones can be made. Functions that are given as `progress`
are called on other threads, and cannot call back. Values and errors are those of `microsandbox`.
"""

from microsandbox.sync._mirror import *  # noqa: F403 - generated, with an __all__
from microsandbox.sync._mirror import __all__ as __all__
