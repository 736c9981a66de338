"""Commands of gdb for a running Strata: `help strata` lists them. Scripts/debug loads this file.

Most of them call `kernel_debugger` in the kernel (Sources/Kernel/Faults/DebuggerQueries.swift), which describes a row
of its answer at each call. The machine runs during these calls.
"""

import os
import signal
import socket
import threading

import gdb

PROMPT = b"strata> "
HALT = 0xF4
INTERRUPT_FLAG = 0x200
QUESTIONS = {"frames": 1, "kmem": 2, "threads": 3, "whatis": 4, "place": 5}


def value(expression):
    return int(gdb.parse_and_eval(expression)) & (2**64 - 1)


def memory(address, size):
    return bytes(gdb.selected_inferior().read_memory(address, size))


def is_halted():
    """Whether the selected processor waits in a hlt: only an interrupt brings it to the call."""
    try:
        return memory(value("$rip") - 1, 1)[0] == HALT
    except gdb.MemoryError:
        return False


def ask(question, argument=0, limit=None):
    """The rows of an answer, each a list of fields; at most `limit` of them."""
    flags = value("$eflags")
    if not is_halted():
        gdb.execute("set $eflags = %d" % (flags & ~INTERRUPT_FLAG), to_string=True)
    rows = []
    try:
        while limit is None or len(rows) < limit:
            call = "((unsigned long (*)(unsigned, unsigned long, unsigned)) %d)(%d, %d, %d)"
            entry = value("(unsigned long) &kernel_debugger")
            text = value(call % (entry, QUESTIONS[question], argument, len(rows)))
            if text == 0:
                break
            rows.append(memory(text, 321).split(b"\0")[0].decode().split("\t"))
        return rows
    finally:
        if not is_halted():
            gdb.execute("set $eflags = %d" % flags, to_string=True)


def show(rows, heads=None):
    """Prints rows as a table: figures to the right, text to the left."""
    for row in rows:
        if row[0].startswith("!"):
            raise gdb.GdbError(row[0][2:])
    table = ([heads] if heads else []) + rows
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(max(map(len, table)))]
    for row in table:
        fields = [
            field.rjust(widths[i]) if rows[0][i].isdigit() and i > 0 else field.ljust(widths[i])
            for i, field in enumerate(row)
        ]
        print("  ".join(fields).rstrip())


class Console:
    """The machine's serial port: a thread collects what it prints."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.environ["STRATA_CONSOLE"])
        self.text = b""
        self.ended = False
        self.changed = threading.Condition()
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self):
        while True:
            data = self.socket.recv(4096)
            with self.changed:
                self.text += data
                self.ended = not data
                self.changed.notify()
            if not data:
                return

    def run_to_prompt(self):
        """Lets the machine run until it prompts, and stops it there. Returns what it printed before."""

        def stop_at_prompt():
            with self.changed:
                self.changed.wait_for(lambda: self.text.endswith(PROMPT) or self.ended)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=stop_at_prompt, daemon=True).start()
        self.run_on()
        # The processor may have been stopped with a spin lock held, where it answers nothing.
        for _ in range(50):
            rows = ask("frames", limit=1)
            if not rows or not rows[0][0].startswith("!"):
                break
            threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGINT]).start()
            self.run_on()
        with self.changed:
            text, self.text = self.text, b""
        return text.decode(errors="replace").replace("\r", "")

    @staticmethod
    def run_on():
        """Lets the machine run until a signal stops it."""
        gdb.execute("set suppress-cli-notifications on")
        gdb.execute("continue", to_string=True)
        gdb.execute("set suppress-cli-notifications off")

    port = None

    @classmethod
    def open(cls):
        """The port; the first use lets the machine boot."""
        if cls.port is None:
            cls.port = cls()
            cls.port.run_to_prompt()
        return cls.port


class ConsoleCommand(gdb.Command):
    """Type a line at the machine's console, let it run until the next prompt, and print its answer.
The first use lets the machine boot."""

    def __init__(self):
        super().__init__("strata-console", gdb.COMMAND_RUNNING)

    def invoke(self, argument, from_tty):
        port = Console.open()
        if argument:
            port.socket.sendall(argument.encode() + b"\r")
            print(port.run_to_prompt().removesuffix(PROMPT.decode()).rstrip())


class FramesCommand(gdb.Command):
    """Frames by role, as the console's frames counts them."""

    def __init__(self):
        super().__init__("strata-frames", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        show(ask("frames"), ["role", "frames"])


class KmemCommand(gdb.Command):
    """Caches of kmem that have served a request."""

    def __init__(self):
        super().__init__("strata-kmem", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        show(ask("kmem"), ["cache", "size", "in use", "free", "slabs", "requests"])


class ThreadsCommand(gdb.Command):
    """Threads of the kernel, and what each sleeper waits for."""

    def __init__(self):
        super().__init__("strata-threads", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        show(ask("threads"), ["id", "thread", "state", "cpu", "waits for"])


class WhatisCommand(gdb.Command):
    """Describe an address: region, mapping, role of its frame, object. Takes any expression."""

    def __init__(self):
        super().__init__("strata-whatis", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        if not argument:
            raise gdb.GdbError("strata-whatis takes an address, as in strata-whatis $rsp")
        show(ask("whatis", value("(unsigned long) (%s)" % argument)))


class BacktracesCommand(gdb.Command):
    """Backtraces of every processor, by frame pointers."""

    def __init__(self):
        super().__init__("strata-backtraces", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        selected = gdb.selected_thread()
        stacks = []
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda t: t.num):
            thread.switch()
            stacks.append((thread.num - 1, self.addresses()))
        selected.switch()
        # Only now, because each name lets the machine run.
        for processor, addresses in stacks:
            print("processor %d" % processor)
            for depth, address in enumerate(addresses):
                # A return address may lie behind the end of a function that never returns.
                name = ask("place", address - (1 if depth else 0))[0][0]
                print("  %#x %s" % (address, name))

    @staticmethod
    def addresses():
        addresses = [value("$rip")]
        frame = value("$rbp")
        while frame >= 1 << 63 and frame % 8 == 0 and len(addresses) < 40:
            try:
                words = memory(frame, 16)
            except gdb.MemoryError:
                break
            address = int.from_bytes(words[8:], "little")
            if address < 1 << 63:
                break
            addresses.append(address)
            frame = int.from_bytes(words[:8], "little")
        return addresses


gdb.execute("set pagination off")
gdb.execute("set language c")
commands = {
    "strata-console": ConsoleCommand,
    "strata-frames": FramesCommand,
    "strata-kmem": KmemCommand,
    "strata-threads": ThreadsCommand,
    "strata-whatis": WhatisCommand,
    "strata-backtraces": BacktracesCommand,
}
for command in commands.values():
    command()


class Strata(gdb.Command):
    # gdb lists only what stands behind a prefix and a blank, so that the text is made of the commands' own.
    __doc__ = "Commands for a running Strata:\n\n" + "\n".join(
        "%-18s %s" % (name, command.__doc__.partition("\n")[0]) for name, command in commands.items()
    )

    def __init__(self):
        super().__init__("strata", gdb.COMMAND_SUPPORT)

    def invoke(self, argument, from_tty):
        gdb.execute("help strata")


Strata()
print("Commands: strata-console LINE, strata-frames, strata-kmem, strata-threads, strata-whatis ADDRESS,")
print("strata-backtraces. The machine waits: continue, or strata-console frames, boots it. Ctrl-C stops it.")
