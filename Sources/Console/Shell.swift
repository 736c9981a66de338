// The console: a prompt on any terminal, and the commands behind it.
//
// It is for a person first. A command prints its answer first, then the evidence, then a command to type next. All
// tables look alike. With `-j` the same command prints one JSON object a line for tools. Looking takes no memory:
// everything the console needs is in one block that it is given at boot, and printing a picture of the heap does not
// change the heap.
//
// How it fits together: bytes become keys (TypedInput.swift, Key.swift), keys edit a line (LineEditor.swift), a line
// becomes words (Words.swift), a word becomes a figure (Figures.swift) or a complaint with a caret
// (Arguments.swift): these are under Input. A command declares its columns once and fills rows (Table.swift), which
// come out as a table or as JSON (JSON.swift), a screen at a time (Screen.swift), all under Output.
// Registry/Command.swift is the list of commands; each has its own file under Commands. Work that lasts, such as a
// bench or a self-test, is in the module Workloads, and serves the host tool too.
//
// A console belongs to one thread. It takes no lock, holds none while it asks a layer, and looks at the terminal's
// input while a command runs: Ctrl-C is seen at each line printed and wherever a command asks `shouldStop`. Every other
// byte stays there for the prompt.

import CPlatform
import MemoryPrimitives
import Paging
import Workloads

/// Where a part of something behind a pointer lies. Only for what lives in place: the address of
/// anything else ends with this call.
@inline(__always) func inPlace<Part>(_ part: inout Part) -> UnsafeMutablePointer<Part> {
  withUnsafeMutablePointer(to: &part) { $0 }
}

/// How a command failed; its message has been printed already.
enum CommandError: UInt8, Error {
  /// The line could not be understood: unknown command, tunable, word.
  case refused
  /// It was understood, tried, and failed: a self-test, a replay.
  case failed
  /// It was understood, and this machine is not made for it: no boot module, too little memory.
  case unfit
}

/// The console of one system: a handle.
package struct Shell {
  /// The outcome of a session, which becomes the machine's exit status.
  package enum ExitStatus: UInt8, Sendable {
    case success, commandFailed, fault
  }

  /// All state of the console. Valid as zeroes but for the fields that `init` sets.
  struct State {
    var terminal: Terminal
    var host: ConsoleHost
    var subject: Subject
    var width: Int
    var height: Int
    /// A person answers at the other end, or at least types there.
    var isInteractive: Bool
    /// The terminal has reported its size, so it understands escapes.
    var isTerminal: Bool
    var wantsColor: Bool
    /// The screen is redrawn from its first line on, over what stands there.
    var redraws: Bool
    var json: Bool
    /// The command that runs.
    var command: Command
    /// `-a`: no row is left out or gathered.
    var all: Bool
    /// This command's output is no longer wanted.
    var stopped: Bool
    /// Ctrl-C ends what is being printed: not before the first prompt.
    var heedsInterrupts: Bool
    /// Ctrl-C, since the line was typed: commands that run commands end as well.
    var interrupted: Bool
    var hasLeft: Bool
    var wasProbed: Bool
    var rowsLeft: Int
    var decoder: KeyDecoder
    /// Bytes of the terminal's input, from the oldest on, that are known to hold no Ctrl-C.
    var searched: Int
    /// A key that has been read and not been used.
    var keyAhead: Key?
    var words: Words
    var editor: LineEditor
    var table: Table.State
    var snapshots: Snapshots
    var fills: DirtyFills
    var packed: PackedPages?
    var bar: Bar
    var runs: ContigEntries
    var bench: BenchOutcome
  }

  let state: UnsafeMutablePointer<State>

  /// Bytes of memory that a console needs, aligned to 64.
  package static var size: ByteCount { ByteCount(MemoryLayout<State>.stride) }

  /// A console in `memory`, which it keeps: `size` bytes, aligned to 64.
  package init(
    in memory: UnsafeMutableRawPointer, terminal: Terminal, host: ConsoleHost, subject: Subject
  ) {
    for word in 0..<(MemoryLayout<State>.stride / 8) {
      (memory + word * 8).storeBytes(of: 0, as: UInt64.self)
    }
    state = memory.bindMemory(to: State.self, capacity: 1)
    state.pointee.terminal = terminal
    state.pointee.host = host
    state.pointee.subject = subject
    state.pointee.width = 80
    state.pointee.height = 24
    state.pointee.wantsColor = true
    state.pointee.heedsInterrupts = true
    state.pointee.fills = DirtyFills()
    state.pointee.keyAhead = nil
    state.pointee.packed = nil
  }

  var terminal: Terminal { state.pointee.terminal }
  var access: WordAccess { state.pointee.host.access }
  var width: Int { state.pointee.width }
  var isJSON: Bool { state.pointee.json }
  var showsAll: Bool { state.pointee.all }

  // MARK: A conversation

  static var prompt: StaticString { "strata> " }

  /// Carries out the kernel's command line: sets its tunables, then runs its commands and leaves. Without `run=`,
  /// serves the terminal until a command leaves. On bare metal it never returns.
  package func serve(_ line: KernelCommandLine) {
    state.pointee.heedsInterrupts = false
    beginPage()
    banner()
    if !line.hasRun {
      state.pointee.isInteractive = true
      state.pointee.wantsColor = line.wantsColor
      _ = setTunables(of: line)
      print(
        "Up in \(count: terminal.milliseconds) ms. Type help or tour; poweroff (in QEMU also Ctrl-A X) leaves."
      )
      state.pointee.heedsInterrupts = true
      probe()
      converse()
      return
    }
    state.pointee.heedsInterrupts = true
    let wasFine = setTunables(of: line)
    runAll(of: line, after: wasFine ? .success : .commandFailed)
  }

  /// Prompts, reads and runs commands until one leaves.
  private func converse() {
    while !state.pointee.hasLeft {
      guard readLine() else { continue }
      runEdited()
      if !state.pointee.hasLeft { askForSize() }
    }
  }

  /// Runs each command of `run=`, echoed behind a prompt, and leaves with the worst status of them.
  private func runAll(of line: KernelCommandLine, after before: ExitStatus) {
    var status = before
    line.forEachCommand { command in
      terminal.write(Line(Self.prompt))
      terminal.write(command)
      newline()
      if run(command) != nil { status = .commandFailed }
      state.pointee.interrupted = false
      return !state.pointee.hasLeft
    }
    if !state.pointee.hasLeft { leave(status) }
  }

  func leave(_ status: ExitStatus) {
    state.pointee.hasLeft = true
    state.pointee.host.leave(status)
  }

  /// Runs one typed line. Nil when all went well.
  func run(_ typed: UnsafeBufferPointer<UInt8>) -> CommandError? {
    state.pointee.json = false
    state.pointee.all = false
    state.pointee.stopped = false
    beginPage()
    state.pointee.words.split(typed)
    defer {
      endProgress()
      state.pointee.json = false
    }
    do throws(CommandError) {
      let arguments = try Arguments(self)
      guard arguments.count > 0 else { return nil }
      state.pointee.json = arguments.takeFlag("-j")
      try dispatch(arguments)
      return nil
    } catch {
      return error
    }
  }

  /// Runs the line just typed. A copy: the command may use the editor again, or be long at work.
  private func runEdited() {
    var line = Line()
    for i in 0..<state.pointee.editor.count { line.append(byte: state.pointee.editor.byte(i)) }
    _ = line.withBytes { run($0) }
  }

  /// Reads one line. False when there is nothing to run.
  private func readLine() -> Bool {
    state.pointee.stopped = false
    state.pointee.interrupted = false
    beginPage()
    terminal.write(Line(Self.prompt))
    state.pointee.editor.begin(columns: width - Self.prompt.utf8CodeUnitCount)
    while true {
      let event = state.pointee.editor.feed(waitForKey(), terminal)
      switch event {
      case .none: continue
      case .line:
        newline()
        // The beginning of a line may be another command.
        guard !state.pointee.editor.hasOverflowed else {
          print("The line is too long: \(LineEditor.capacity) bytes are the most. Nothing was run.")
          return false
        }
        return state.pointee.editor.count > 0
      case .interrupt:
        terminal.write("^C")
        newline()
        return false
      case .leave:
        newline()
        print("Type poweroff to leave; help lists all commands.")
        return false
      case .clear:
        if state.pointee.isTerminal { terminal.write(Line("\u{1b}[H\u{1b}[2J")) } else { newline() }
        terminal.write(Line(Self.prompt))
        state.pointee.editor.showAgain(terminal)
      case .complete:
        complete()
      }
    }
  }
}
