// watch, fault, tour: commands that run other commands, or stop the machine.

import PhysicalMemory
import Paging
import KernelMemory
import Kmem
import MemoryPrimitives

extension Shell {
  /// A fault that a person can trigger.
  package enum Fault: UInt8, Sendable {
    case null, guardPage, writeText, executeData, doubleFree, wrongSize, foreignPointer, stackOverflow
    case divide, overflow
    case lockOrder, lockedSleep, lockedFault, hang, nmi, everywhere

    struct Named {
      let fault: Fault
      let name: StaticString
    }

    static let all: InlineArray<16, Named> = [
      Named(fault: .null, name: "null"),
      Named(fault: .guardPage, name: "guard"),
      Named(fault: .writeText, name: "write-text"),
      Named(fault: .executeData, name: "execute-data"),
      Named(fault: .doubleFree, name: "double-free"),
      Named(fault: .wrongSize, name: "wrong-size"),
      Named(fault: .foreignPointer, name: "foreign-pointer"),
      Named(fault: .stackOverflow, name: "stack-overflow"),
      Named(fault: .divide, name: "divide"),
      Named(fault: .overflow, name: "overflow"),
      Named(fault: .lockOrder, name: "lock-order"),
      Named(fault: .lockedSleep, name: "locked-sleep"),
      Named(fault: .lockedFault, name: "locked-fault"),
      Named(fault: .hang, name: "hang"),
      Named(fault: .nmi, name: "nmi"),
      Named(fault: .everywhere, name: "everywhere"),
    ]
  }

  func fault(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.nextOfAnyForm() else {
      var names: Line = "Which?"
      for i in 0..<Fault.all.count { names.append(line: " \(Fault.all[i].name)") }
      throw refuse(names)
    }
    try arguments.end("fault KIND")
    for i in 0..<Fault.all.count where word.bytes == Fault.all[i].name {
      switch Fault.all[i].fault {
      case .doubleFree: faultDoubleFree()
      case .wrongSize: faultWrongSize()
      case .foreignPointer: faultForeignPointer()
      case .hang:
        guard let view = state.pointee.host.executive, view.watching(view.context) else {
          throw refuse("The watchdog is off, so a hang would not be reported. Type: watchdog on")
        }
        state.pointee.host.triggering(state.pointee.host.context, Fault.hang.rawValue)
      default: state.pointee.host.triggering(state.pointee.host.context, Fault.all[i].fault.rawValue)
      }
      throw fail("The machine did not report the fault: this is a bug of Strata.")
    }
    throw refuse(word, "no such fault; help fault lists them")
  }

  // Bugs of a caller of kmem. The size classes are audited during the call, so that kmem knows both call sites and
  // finds the bug at once, not when the object leaves a magazine.

  private static var small: ByteCount { ByteCount(UInt64(64)) }
  private static var larger: ByteCount { ByteCount(UInt64(128)) }

  private func setAudit(_ auditing: Auditing) {
    memory.kmem.lookUp(Self.small)?.setAudit(auditing)
    memory.kmem.lookUp(Self.larger)?.setAudit(auditing)
  }

  @inline(never) private func faultDoubleFree() {
    let kmem = memory.kmem
    let type = kmem.type(named: ShortName("console"))
    setAudit(.on)
    if let object = kmem.alloc(Self.small, type: type) {
      kmem.free(object, size: Self.small, type: type)
      kmem.free(object, size: Self.small, type: type)
    }
    setAudit(kmem.auditing)
  }

  @inline(never) private func faultWrongSize() {
    let kmem = memory.kmem
    let type = kmem.type(named: ShortName("console"))
    setAudit(.on)
    if let object = kmem.alloc(Self.small, type: type) {
      kmem.free(object, size: Self.larger, type: type)
      // When the report returns, as in a test, nothing was changed: the object must still be freed.
      kmem.free(object, size: Self.small, type: type)
    }
    setAudit(kmem.auditing)
  }

  @inline(never) private func faultForeignPointer() {
    let kmem = memory.kmem
    let type = kmem.type(named: ShortName("console"))
    setAudit(.on)
    // The console's own memory, which no cache has allocated.
    kmem.free(UnsafeMutableRawPointer(state), size: Self.small, type: type)
    setAudit(kmem.auditing)
  }

  /// Repeats a command until a key is pressed. Without a terminal the command runs once.
  func watch(_ arguments: Arguments) throws(CommandError) {
    var seconds: UInt64 = 2
    guard arguments.count > 1 else { throw refuse("A command is missing, as in: watch 2 frames") }
    let first = arguments[1]
    if let number = try? Figures.number(first.bytes) {
      _ = arguments.nextOfAnyForm()
      seconds = number
      guard seconds >= 1 && seconds <= 3600 else { throw refuse(first, "from 1 to 3600 seconds") }
    }
    guard let rest = arguments.rest() else { throw refuse("A command is missing, as in: watch 2 frames") }
    var line = Line()
    line.append(bytes: rest)
    let interactive = state.pointee.isInteractive
    let json = isJSON
    if json { line.append(" -j") }
    repeat {
      if state.pointee.isTerminal && interactive && !json { terminal.write(Line("\u{1b}[H\u{1b}[2J")) }
      if let error = line.withBytes({ run($0) }) { throw error }
      guard interactive, !state.pointee.interrupted else { return }
      if !json {
        newline()
        put("Every \(count: seconds, "second"); any key stops.")
        newline()
      }
      let deadline = terminal.milliseconds + seconds * 1000
      while terminal.milliseconds < deadline {
        if pollKey() != nil { return }
        terminal.rest(milliseconds: deadline - min(deadline, terminal.milliseconds))
      }
    } while true
  }

  // MARK: The tour

  private struct Stop {
    let sentence: StaticString
    /// The command as typed; nil for the fill, whose size depends on the machine.
    let command: StaticString?
  }

  private static let stops: InlineArray<13, Stop> = [
    Stop(sentence: "the firmware's memory map. Strata uses only \"usable\" ranges.", command: "memmap"),
    Stop(sentence: "the use of it. Every frame has one role, and the counts add up.", command: "frames"),
    Stop(sentence: "the same as a picture: capitals can't move, dots are free.", command: "map"),
    Stop(sentence: "free memory comes in blocks of 2^n frames; long ones are precious.", command: "buddy"),
    Stop(
      sentence: "could we allocate a run of two megabytes? The answer changes nothing.",
      command: "why 2M align=2M"),
    Stop(sentence: "the processor sees addresses through tables like this one.", command: "pagetable"),
    Stop(sentence: "arenas allocate addresses; each imports from the one above it.", command: "vmem"),
    Stop(
      sentence: "small objects: some of each size, filled, checked and freed.", command: "selftest objects"),
    Stop(sentence: "they came from slabs: pages cut into parts of one size.", command: "kmem"),
    Stop(sentence: "the work: all that a real kernel allocated, stamped and checked.", command: "replay"),
    Stop(sentence: "pageable memory: scattered pages, each with a stamp.", command: nil),
    Stop(
      sentence: "a run of two megabytes in full memory: the pages in it are moved.",
      command: "contig -v 2M align=2M"),
    Stop(sentence: "and no page has lost its contents: each still has its stamp.", command: "verify"),
  ]

  /// A walk: a sentence, the command as typed, its screen. On a terminal Enter goes on and `q` ends it. The tour
  /// frees all memory that it has allocated, wherever it ends.
  func tour() throws(CommandError) {
    let (fills, lastID) = (fillCount, contigEntries.pointee.lastID)
    defer {
      giveBackContig(above: lastID)
      freeFills(from: fills)
    }
    try walk()
  }

  /// Fills memory so far that a request must write pages; without a disk, so far that pages can still be moved.
  private var fillForTour: Line {
    let swap = memory.paging.swap.figures.free
    let room = physical.freeCount + swap
    let kept = memory.paging.freeTarget + physical.reserve(for: .normal)
    let percent = (room - min(room, kept)).rawValue * 100 / physical.total.rawValue / 5 * 5
    return swap > .zero && percent > 100 ? "dirty \(min(120, percent))%" : "dirty 60%"
  }

  private func walk() throws(CommandError) {
    let json = isJSON
    for i in 0..<Self.stops.count {
      let stop = Self.stops[i]
      var line = stop.command.map { Line($0) } ?? fillForTour
      if !json {
        newline()
        print("-- \(count: UInt64(i + 1)) of \(count: UInt64(Self.stops.count)): \(stop.sentence)")
        if state.pointee.interrupted { return }
        put("\(Self.prompt)\(line)")
        newline()
      }
      if json { line.append(" -j") }
      let error = line.withBytes { run($0) }
      if state.pointee.interrupted { return }
      // A machine without a trace, or too small for it, continues the tour.
      if let error, error != .unfit {
        if !json {
          print("The tour ends here; its memory is freed.")
          if fillCount > 0 { print("! Memory may be in use already. Type: dirty free") }
        }
        throw error
      }
      // A key that ends a listing does not end the tour.
      state.pointee.stopped = false
      if state.pointee.isInteractive && !json && i + 1 < Self.stops.count {
        terminal.write("-- Enter goes on, q ends the tour --")
        var goesOn = true
        while true {
          let key = waitForKey()
          if key == .enter || key == .character(UInt8(ascii: " ")) { break }
          if key == .character(UInt8(ascii: "q")) || key == .interrupt || key == .endOfInput {
            goesOn = false
            break
          }
        }
        terminal.write("\r                                    \r")
        if !goesOn { return }
      }
    }
    if !json {
      print("That was the tour; its memory is freed. help lists all commands.")
    }
  }
}
