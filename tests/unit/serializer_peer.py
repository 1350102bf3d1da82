"""A process that plays a kernel: runs cells in its `__main__`, freezes, thaws, calls, tells.

It reads pickled requests ``(verb, *arguments)`` from stdin and answers ``(ok, value)`` on stdout.
Started as a script, so that its `__main__` is where the cells' names live, as in a kernel.
"""

import itertools
import linecache
import pickle
import sys

_requests, _answers = sys.stdin.buffer, sys.stdout.buffer
sys.stdout = sys.stderr
_cells = itertools.count(1)


class _Peer:
    """The verbs. Nothing heavy is imported before the first of them needs it."""

    def __init__(self):
        from nbtaskq.serializers import DillSerializer

        self.serializer = DillSerializer()

    def cell(self, source, visible=True):
        """Run a cell; `visible` puts its source where IPython does."""
        name = f"<ipython-input-{next(_cells)}-abc>"
        if visible:
            lines = source.splitlines(keepends=True)
            linecache.cache[name] = (len(source), None, lines, name)
        exec(compile(source, name, "exec"), globals())

    def freeze(self, expression):
        """Freeze a function; the answer is what travels."""
        return self.serializer.freeze(eval(expression))

    def dumps(self, expression, root="call"):
        return self.serializer.dumps(eval(expression), root=root)

    def call(self, code, call, results=None):
        """Thaw and run a function, as a worker does; the answer is the result's parcel."""
        from nbtaskq.serializers import dump_exception

        function = self.serializer.thaw(code)
        args, kwargs = self.serializer.loads(call, results)
        try:
            value = function(*args, **kwargs)
            if hasattr(value, "__await__"):
                import asyncio

                value = asyncio.run(_awaited(value))
            elif hasattr(value, "send"):
                value = list(value)
        except Exception as error:
            return "error", dump_exception(self.serializer, error)
        return "value", self.serializer.dumps(value, root="result")

    def load(self, parcel, name="result"):
        """Bind a result to a name in `__main__`."""
        globals()[name] = self.serializer.loads(parcel)

    def load_error(self, parcel, name="error"):
        from nbtaskq.serializers import load_exception

        globals()[name] = load_exception(self.serializer, parcel)

    def dump_error(self, expression):
        """Raise an exception in a function of its own and dump it."""
        from nbtaskq.serializers import dump_exception

        try:
            raise eval(expression)
        except Exception as error:
            return dump_exception(self.serializer, error)

    def tell(self, expression):
        return eval(expression)


async def _awaited(value):
    return await value


def _serve():
    peer = _Peer()
    while True:
        try:
            verb, *arguments = pickle.load(_requests)
        except EOFError:
            return
        try:
            answer = True, getattr(peer, verb)(*arguments)
            body = pickle.dumps(answer)
        except BaseException as error:
            body = pickle.dumps((False, (type(error).__name__, str(error))))
        _answers.write(body)
        _answers.flush()


if __name__ == "__main__":
    _serve()
