// The commands: one static table, which `help`, Tab, "Did you mean" and `dispatch` all read.

import KernelMemory
import MemoryPrimitives

/// A command's number: its index in `Command.all`.
enum Verb: UInt8 {
  case memmap, frames, buddy, map
  case pagetable, vmem, kmem, vmstat
  case queues, objects, swap, dirty, verify, contig, launder, wire, unwire
  case cpus, threads, locks, watchdog
  case whatis, why, failures
  case snapshot, diff, watch
  case sysctl, selftest, bench, replay, tour, fault
  case help, panic, poweroff
}

struct Command {
  let verb: Verb
  let name: StaticString
  let usage: StaticString
  let about: StaticString
  let example: StaticString

  /// In the order of `Verb`.
  static let all: InlineArray<36, Command> = [
    Command(
      verb: .memmap, name: "memmap", usage: "memmap",
      about: """
        The memory map as the firmware gave it, the usable ranges of it, and how
        many frames were taken from each range.
        """, example: "memmap"),
    Command(
      verb: .frames, name: "frames", usage: "frames [-a]",
      about: """
        Every frame has one role: the count of each. The total is what memmap
        took.
        """, example: "frames"),
    Command(
      verb: .buddy, name: "buddy", usage: "buddy",
      about: """
        Free blocks by list and order. Unusable is the share of free memory that
        lies in blocks too small for the order; the fragmentation index is
        near 1 where a refusal comes of fragmentation, near 0 where of shortage.
        """, example: "buddy"),
    Command(
      verb: .map, name: "map", usage: "map [ADDRESS+SIZE] [-a]",
      about: """
        A picture of physical memory, a character a block or a frame. Upper case
        can't move, lower case can, a dot is free. -a repeats lines that look
        alike.
        """, example: "map 0x10_0000+2M"),
    Command(
      verb: .pagetable, name: "pagetable", usage: "pagetable [ADDRESS] [-a]",
      about: """
        The walk of a virtual address through the page tables, entry by entry;
        without one, what is mapped where and how: a pageable range in a row,
        with -a each of its pages.
        """, example: "pagetable 0xffff_ffff_8000_0000"),
    Command(
      verb: .vmem, name: "vmem", usage: "vmem [ARENA] [-a]",
      about: """
        Arenas of addresses, each under the one that it imports from; of one
        arena, its segments.
        """, example: "vmem heap_va"),
    Command(
      verb: .kmem, name: "kmem", usage: "kmem [-a]",
      about: """
        Object caches: objects in use and free, slabs, bytes held, the share of
        them that is live, requests and failures.
        """, example: "kmem -a"),
    Command(
      verb: .vmstat, name: "vmstat", usage: "vmstat -m | -z",
      about: """
        What vmstat(8) prints: -m memory by type, -z caches. Columns, order and
        units are those that scripts know.
        """, example: "vmstat -m"),
    Command(
      verb: .queues, name: "queues", usage: "queues",
      about: """
        The queues of pageable pages, beside the marks at which the page daemon
        wakes and stops.
        """, example: "queues"),
    Command(
      verb: .objects, name: "objects", usage: "objects [N] [-a]",
      about: """
        Memory objects: pages in memory, in swap, wired; of one object, the
        ranges that show it.
        """, example: "objects"),
    Command(
      verb: .swap, name: "swap", usage: "swap",
      about: "The swap device: slots used, free and bad, what was written and read.",
      example: "swap"),
    Command(
      verb: .dirty, name: "dirty", usage: "dirty SHARE | SIZE | free",
      about: """
        Fills a share of memory with dirty pageable pages, each with a stamp,
        scattered over memory; with swap the share may be more than all of
        it. What fits stays where memory ends, and at Ctrl-C what is filled so
        far. free frees all of them.
        """, example: "dirty 90%"),
    Command(
      verb: .verify, name: "verify", usage: "verify",
      about: """
        Touches every page that dirty made, wherever it is by now, and checks
        its stamp.
        """, example: "verify"),
    Command(
      verb: .contig, name: "contig",
      usage: "contig SIZE [WHERE] [HOW] [-v] | contig list | contig free ID | all",
      about: """
        Contiguous memory: what is in the way of one run is moved or written to
        swap, and no other page is.
        WHERE: low=A high=A align=SIZE boundary=SIZE, as why takes them.
        HOW: nowait (moves, never writes), zero, attr=wb|wt|wc|uc, type=NAME.
        -v draws the run before, after each pass, and after.
        Refused, it says never, later, not now, not without waiting, or how
        much would be left with vm.contig.passes as it is.
        """, example: "contig -v 2M align=2M"),
    Command(
      verb: .launder, name: "launder", usage: "launder [active|inactive|laundry|daemon] [SIZE]",
      about: """
        Writes dirty pages of a queue to swap and frees them, or runs the
        page daemon, and prints the cost.
        """, example: "launder active 1M"),
    Command(
      verb: .wire, name: "wire", usage: "wire ADDRESS+SIZE [holes]",
      about: """
        Wires the pages of a range: they stay where they are until unwire.
        All or none: a part that is not pageable refuses the whole, but holes
        passes over such parts.
        """,
      example: "wire 0xffff_c000_0020_0000+64K"),
    Command(
      verb: .unwire, name: "unwire", usage: "unwire ADDRESS+SIZE",
      about: """
        Undoes one wire of each page of a range. Parts that are not pageable are
        passed over; a page that is not wired refuses the whole.
        """, example: "unwire 0xffff_c000_0020_0000+64K"),
    Command(
      verb: .cpus, name: "cpus", usage: "cpus",
      about: """
        The processors: what runs on each, how often it changed to another thread,
        how many interrupts it handled, how long it was idle.
        """, example: "cpus"),
    Command(
      verb: .threads, name: "threads", usage: "threads",
      about: """
        The threads of the kernel: where each runs or ran last, how deep its stack
        ever was, how often it had its turn, until when it sleeps.
        """, example: "threads"),
    Command(
      verb: .locks, name: "locks", usage: "locks",
      about: """
        Locks by rank: how often a processor waited for one, how long at most, and
        which processors hold one at this moment.
        """, example: "locks"),
    Command(
      verb: .watchdog, name: "watchdog", usage: "watchdog [on|off]",
      about: """
        The watchdog reports a processor that makes no progress for ten seconds.
        Without an argument, whether it is on. On one processor it needs QEMU's
        watchdog device: QEMUFLAGS="-device ib700 -action watchdog=inject-nmi".
        """, example: "watchdog on"),
    Command(
      verb: .whatis, name: "whatis", usage: "whatis ADDRESS | frame N",
      about: """
        Everything known about an address or a frame, layer by layer. Takes
        any address as it is printed, virtual or physical.
        """, example: "whatis frame 300"),
    Command(
      verb: .why, name: "why", usage: "why SIZE [WHERE] [nowait]",
      about: """
        A request for contiguous memory, without doing it: where it would be
        granted and what that would move and write, or how much is missing, or
        what stands in the way, or why it can never be.
        WHERE: low=A high=A align=SIZE boundary=SIZE. nowait: nothing may be
        written for it.
        """, example: "why 2M align=2M"),
    Command(
      verb: .failures, name: "failures", usage: "failures",
      about: """
        The last 64 requests that were refused, or granted only after pages were
        moved or written, with requester and tick.
        """, example: "failures"),
    Command(
      verb: .snapshot, name: "snapshot", usage: "snapshot [NAME]",
      about: "Keeps all counters under a name, for diff. It keeps four at most.",
      example: "snapshot before"),
    Command(
      verb: .diff, name: "diff", usage: "diff [NAME] [-a]",
      about: "Changes since the snapshot of that name, or since the last one.",
      example: "diff before"),
    Command(
      verb: .watch, name: "watch", usage: "watch [SECONDS] COMMAND",
      about: "Repeats a command until a key is pressed.", example: "watch 2 frames"),
    Command(
      verb: .sysctl, name: "sysctl", usage: "sysctl [NAME | PREFIX | NAME=VALUE]",
      about: "Tunables and statistics, one tree of names: shows them, or sets one.",
      example: "sysctl vm"),
    Command(
      verb: .selftest, name: "selftest", usage: "selftest [NAME] [SECONDS]",
      about: """
        Checks the invariants of each layer, and runs the self-tests: among them
        the same seeded history of operations that the tests run on the host.
        smp uses all layers at once on all processors, for 10 seconds or SECONDS.
        """, example: "selftest history"),
    Command(
      verb: .bench, name: "bench", usage: "bench [NAME]",
      about: """
        Measures budgets in this kernel, in instructions, and frees all memory
        that it allocates. contig requests 256 runs of 2 MiB on a machine full of
        dirty pages: type replay keep first, so that it is used as a real one.
        Others: contig-one contig-low contig-busy kmem pages pageblocks wired
        vmem fault fault-blocks scan switch shootdown longest-off boot. A goal
        that is missed fails the command only when its row is due.
        """, example: "bench fault"),
    Command(
      verb: .replay, name: "replay", usage: "replay [keep] [on=N]",
      about: """
        Runs the trace of a real kernel's allocations against the allocators.
        With keep, what the trace leaves alive stays alive. on=N splits it over
        N processors, each with a thread; events that the trace recorded in
        interrupts run in timer interrupts. Counts are the same; of what is live
        at once, the highest sample is printed.
        """, example: "replay on=4"),
    Command(
      verb: .tour, name: "tour", usage: "tour",
      about: "A walk through all layers, a command and a sentence at a time.",
      example: "tour"),
    Command(
      verb: .fault, name: "fault", usage: "fault KIND",
      about: """
        Triggers a bug on purpose, and shows its report. The machine
        stops with exit status 37. Kinds: null guard write-text execute-data
        double-free wrong-size foreign-pointer stack-overflow divide overflow
        lock-order locked-sleep locked-fault hang nmi everywhere.
        """, example: "fault double-free"),
    Command(
      verb: .help, name: "help", usage: "help [COMMAND]",
      about: "This.", example: "help why"),
    Command(
      verb: .panic, name: "panic", usage: "panic",
      about: "Stops the machine with a backtrace, exit status 37.", example: "panic"),
    Command(
      verb: .poweroff, name: "poweroff", usage: "poweroff",
      about: "Leaves, exit status 33.", example: "poweroff"),
  ]

  static func named(_ word: Bytes) -> Command? {
    for i in 0..<all.count where word == all[i].name { return all[i] }
    return nil
  }

  /// The command nearest to the typed word, if it is near enough to be a slip.
  static func nearest(to word: Bytes) -> Command? {
    var best = 3
    var found: Command?
    for i in 0..<all.count {
      let name = all[i].name
      let spelled = Bytes(start: name.utf8Start, count: name.utf8CodeUnitCount)
      var distance = slips(word, spelled, limit: best)
      // A prefix of a name is an abbreviation, not a slip.
      if word.count >= 2 && word.count < spelled.count && Bytes(rebasing: spelled[0..<word.count]) == word {
        distance = 0
      }
      if distance < best {
        best = distance
        found = all[i]
      }
    }
    return best < 3 && best < max(2, word.count) ? found : nil
  }
}

func == (a: Bytes, b: Bytes) -> Bool {
  guard a.count == b.count else { return false }
  for i in 0..<a.count where a[i] != b[i] { return false }
  return true
}

extension Shell {
  /// Finds the command and runs it.
  func dispatch(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.nextOfAnyForm() else { return }
    guard let command = Command.named(word.bytes) else {
      if let near = Command.nearest(to: word.bytes) {
        throw refuse("No command \"\(word.line)\". Did you mean \(near.name)? (help lists all)")
      }
      throw refuse("No command \"\(word.line)\". help lists all.")
    }
    state.pointee.all = arguments.takeFlag("-a")
    switch command.verb {
    case .map: try map(arguments)
    case .pagetable: try pagetable(arguments)
    case .vmem: try vmem(arguments)
    case .vmstat: try vmstat(arguments)
    case .objects: try objects(arguments)
    case .dirty: try dirty(arguments)
    case .contig: try contig(arguments)
    case .launder: try launder(arguments)
    case .wire: try wire(arguments)
    case .unwire: try unwire(arguments)
    case .watchdog: try watchdog(arguments)
    case .whatis: try whatis(arguments)
    case .why: try why(arguments)
    case .snapshot: try snapshot(arguments)
    case .diff: try diff(arguments)
    case .watch: try watch(arguments)
    case .sysctl: try sysctl(arguments)
    case .selftest: try selftest(arguments)
    case .bench: try bench(arguments)
    case .replay: try replay(arguments)
    case .fault: try fault(arguments)
    case .help: try help(arguments)
    case .memmap, .frames, .buddy, .kmem, .queues, .swap, .verify, .cpus, .threads, .locks, .failures, .tour,
      .panic, .poweroff:
      try arguments.end(command.usage)
      try runWithoutArguments(command.verb)
    }
  }

  private func runWithoutArguments(_ verb: Verb) throws(CommandError) {
    switch verb {
    case .memmap: try memmap()
    case .frames: try frames()
    case .buddy: try buddy()
    case .kmem: try kmem()
    case .queues: try queues()
    case .swap: try swap()
    case .verify: try verify()
    case .cpus: try cpus()
    case .threads: try threads()
    case .locks: try locks()
    case .failures: try failures()
    case .tour: try tour()
    case .panic: state.pointee.host.panicking(state.pointee.host.context)
    case .poweroff: leave(.success)
    default: preconditionFailure("a command that takes arguments")
    }
  }

  // MARK: Tab

  /// Completes the word at the cursor: a command in front, behind it what that command takes.
  func complete() {
    let start = state.pointee.editor.wordStart
    let length = state.pointee.editor.cursor - start
    guard length < 64 else { return }
    var typed = InlineArray<64, UInt8>(repeating: 0)
    for i in 0..<length { typed[i] = state.pointee.editor.byte(start + i) }
    var common = InlineArray<64, UInt8>(repeating: 0)
    var commonLength = -1
    var found = 0
    forEachCandidate(at: start) { name in
      guard name.count >= length, name.count < 64 else { return }
      for i in 0..<length where name[i] != typed[i] { return }
      found += 1
      if commonLength < 0 {
        commonLength = name.count
        for i in 0..<name.count { common[i] = name[i] }
      } else {
        var same = 0
        while same < min(commonLength, name.count) && common[same] == name[same] { same += 1 }
        commonLength = same
      }
    }
    if found == 0 { return }
    if commonLength > length {
      for i in length..<commonLength { state.pointee.editor.insert(common[i]) }
    }
    if found == 1 { state.pointee.editor.insert(UInt8(ascii: " ")) }
    if found == 1 || commonLength > length {
      state.pointee.editor.show(terminal)
      return
    }
    // Nothing to add: show what there is to choose from.
    newline()
    beginPage()
    var line = Line()
    forEachCandidate(at: start) { name in
      guard name.count >= length, name.count < 64 else { return }
      for i in 0..<length where name[i] != typed[i] { return }
      if line.count + 2 + name.count > min(width, 300) {
        print(line)
        line = Line()
      }
      if line.count > 0 { line.append("  ") }
      line.append(bytes: name)
    }
    if line.count > 0 { print(line) }
    state.pointee.stopped = false
    terminal.write(Line(Self.prompt))
    state.pointee.editor.showAgain(terminal)
  }

  /// Calls `body` with each word that may stand at `start` of the line.
  private func forEachCandidate(at start: Int, _ body: (Bytes) -> Void) {
    func word(_ text: StaticString) { body(Bytes(start: text.utf8Start, count: text.utf8CodeUnitCount)) }
    let first = firstWord(before: start)
    guard first.count > 0 else { return forEachCommandName(word) }
    guard let command = first.withBytes({ Command.named($0) }) else { return }
    switch command.verb {
    case .help, .watch: forEachCommandName(word)
    case .sysctl:
      let statistics = memory.statistics
      for i in 0..<statistics.count { word(statistics[i].name) }
    case .fault: for i in 0..<Fault.all.count { word(Fault.all[i].name) }
    case .diff: forEachSnapshotName { name in ("\(name)" as Line).withBytes { body($0) } }
    case .bench: forEachBenchName(word)
    case .objects: forEachObjectNumber { number in number.withBytes { body($0) } }
    case .selftest: forEachSelfTestName(word)
    case .vmem: forEachArenaName { name in ("\(name)" as Line).withBytes { body($0) } }
    default: forEachFixedWord(of: command.verb, word)
    }
  }

  /// The first word of the line being edited, if it ends before `end`; at most 16 bytes of it.
  private func firstWord(before end: Int) -> Line {
    var word = Line()
    var i = 0
    while i < end && state.pointee.editor.byte(i) == UInt8(ascii: " ") { i += 1 }
    while i < end && word.count < 16 && state.pointee.editor.byte(i) != UInt8(ascii: " ") {
      word.append(byte: state.pointee.editor.byte(i))
      i += 1
    }
    return word
  }

  private func forEachCommandName(_ body: (StaticString) -> Void) {
    for i in 0..<Command.all.count { body(Command.all[i].name) }
  }

  /// Calls `body` with the words that a command always takes.
  private func forEachFixedWord(of verb: Verb, _ body: (StaticString) -> Void) {
    switch verb {
    case .vmstat:
      body("-m")
      body("-z")
    case .why, .contig:
      body("low=")
      body("high=")
      body("align=")
      body("boundary=")
      body("nowait")
      guard verb == .contig else { return }
      body("zero")
      body("attr=")
      body("type=")
      body("list")
      body("free")
    case .dirty: body("free")
    case .whatis: body("frame")
    case .launder:
      body("active")
      body("inactive")
      body("laundry")
      body("daemon")
    case .wire: body("holes")
    case .watchdog:
      body("on")
      body("off")
    case .replay:
      body("keep")
      body("on=")
    default: break
    }
  }
}
