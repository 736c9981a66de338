// The registry of commands: one case a command, and two switches that give its description and its handler.
//
// This is the only place beside a command's own file that names it. The switches are exhaustive, so the compiler names
// the command that lacks a description or a handler. `help`, Tab, "Did you mean" and dispatch are derived from them.
// Handlers are not stored: a stored closure is retained and released, and a C function pointer can't throw.

import MemoryPrimitives

/// The commands, in the order in which `help` lists them.
enum Command: UInt8, NamedCases {
  case frames, map, kmem, vmem, zones, objects, vmstat
  case why, failures, buddy, queues, swap, zs, locks
  case whatis, pagetable, memmap, cpus, threads
  case tour, replay, dirty, verify, contig, launder, wire, unwire, fault, selftest, bench, watchdog
  case snapshot, diff, watch
  case sysctl, help, poweroff, panic

  static var last: Self { .panic }

  var name: StaticString { description.name }

  var description: CommandDescription {
    switch self {
    case .frames: .frames
    case .map: .map
    case .kmem: .kmem
    case .vmem: .vmem
    case .zones: .zones
    case .objects: .objects
    case .vmstat: .vmstat
    case .why: .why
    case .failures: .failures
    case .buddy: .buddy
    case .queues: .queues
    case .swap: .swap
    case .zs: .zs
    case .locks: .locks
    case .whatis: .whatis
    case .pagetable: .pagetable
    case .memmap: .memmap
    case .cpus: .cpus
    case .threads: .threads
    case .tour: .tour
    case .replay: .replay
    case .dirty: .dirty
    case .verify: .verify
    case .contig: .contig
    case .launder: .launder
    case .wire: .wire
    case .unwire: .unwire
    case .fault: .fault
    case .selftest: .selftest
    case .bench: .bench
    case .watchdog: .watchdog
    case .snapshot: .snapshot
    case .diff: .diff
    case .watch: .watch
    case .sysctl: .sysctl
    case .help: .help
    case .poweroff: .poweroff
    case .panic: .panic
    }
  }

  /// Runs the command. Its arguments have been read up to its name.
  func run(_ shell: Shell, _ arguments: Arguments) throws(CommandError) {
    switch self {
    case .frames: try shell.frames()
    case .map: try shell.map(arguments)
    case .kmem: try shell.kmem()
    case .vmem: try shell.vmem(arguments)
    case .zones: try shell.zones()
    case .objects: try shell.objects(arguments)
    case .vmstat: try shell.vmstat(arguments)
    case .why: try shell.why(arguments)
    case .failures: try shell.failures()
    case .buddy: try shell.buddy()
    case .queues: try shell.queues()
    case .swap: try shell.swap()
    case .zs: try shell.zs(arguments)
    case .locks: try shell.locks()
    case .whatis: try shell.whatis(arguments)
    case .pagetable: try shell.pagetable(arguments)
    case .memmap: try shell.memmap()
    case .cpus: try shell.cpus()
    case .threads: try shell.threads()
    case .tour: try shell.tour()
    case .replay: try shell.replay(arguments)
    case .dirty: try shell.dirty(arguments)
    case .verify: try shell.verify()
    case .contig: try shell.contig(arguments)
    case .launder: try shell.launder(arguments)
    case .wire: try shell.wire(arguments)
    case .unwire: try shell.unwire(arguments)
    case .fault: try shell.fault(arguments)
    case .selftest: try shell.selftest(arguments)
    case .bench: try shell.bench(arguments)
    case .watchdog: try shell.watchdog(arguments)
    case .snapshot: try shell.snapshot(arguments)
    case .diff: try shell.diff(arguments)
    case .watch: try shell.watch(arguments)
    case .sysctl: try shell.sysctl(arguments)
    case .help: try shell.help(arguments)
    case .poweroff: shell.poweroff()
    case .panic: shell.panic()
    }
  }
}

extension Command {
  /// The command with this name or synonym.
  static func named(_ word: Bytes) -> Command? {
    var found: Command?
    forEach { command in
      let description = command.description
      if word == description.name || description.hasSynonym(word) { found = command }
    }
    return found
  }

  /// The command nearest to the typed word, if it is near enough to be a slip.
  static func nearest(to word: Bytes) -> Command? {
    var best = 3
    var found: Command?
    forEach { command in
      let name = command.description.name
      let spelled = Bytes(start: name.utf8Start, count: name.utf8CodeUnitCount)
      var distance = slips(word, spelled, limit: best)
      // A prefix of a name is an abbreviation, not a slip.
      if word.count >= 2 && word.count < spelled.count && Bytes(rebasing: spelled[0..<word.count]) == word {
        distance = 0
      }
      if distance < best {
        best = distance
        found = command
      }
    }
    return best < 3 && best < max(2, word.count) ? found : nil
  }
}

extension Shell {
  /// Finds the command and runs it.
  func dispatch(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.nextOfAnyForm() else { return }
    let command = try command(named: word)
    state.pointee.command = command
    state.pointee.all = arguments.takeFlag("-a")
    if command.description.arguments == .none { try arguments.end() }
    try command.run(self, arguments)
  }

  /// The command that a word names, or an error that suggests another.
  func command(named word: Word) throws(CommandError) -> Command {
    if let command = Command.named(word.bytes) { return command }
    guard let near = Command.nearest(to: word.bytes) else {
      throw refuse("No command \"\(word.line)\". help lists all.")
    }
    throw refuse("No command \"\(word.line)\". Did you mean \(near.description.name)? (help lists all)")
  }
}
