// watch, fault, tour: commands that run other commands, or stop the machine.

import PhysicalMemory
import Paging
import KernelMemory
import Kmem
import MemoryPrimitives

extension Shell {
  /// A fault that a person may ask for.
  public enum Fault: UInt8, Sendable {
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
          throw refuse("Nobody would notice. Type: watchdog on")
        }
        state.pointee.host.triggering(state.pointee.host.context, Fault.hang.rawValue)
      default: state.pointee.host.triggering(state.pointee.host.context, Fault.all[i].fault.rawValue)
      }
      throw fail("The machine did not notice: this is a bug of Strata.")
    }
    throw refuse(word, "no such fault; help fault lists them")
  }

  // What a caller of kmem can do wrong. The size classes are audited meanwhile, so that both call sites
  // are known and the bug is seen at once, not when the object leaves a magazine.

  private static var small: ByteCount { ByteCount(UInt64(64)) }
  private static var larger: ByteCount { ByteCount(UInt64(128)) }

  private func setAudit(_ auditing: Auditing) {
    memory.kmem.lookUp(Self.small)?.setAudit(auditing)
    memory.kmem.lookUp(Self.larger)?.setAudit(auditing)
  }

  @inline(never) private func faultDoubleFree() {
    let kmem = memory.kmem
    let type = kmem.type(named: Name("console"))
    setAudit(.on)
    if let object = kmem.alloc(Self.small, type: type) {
      kmem.free(object, size: Self.small, type: type)
      kmem.free(object, size: Self.small, type: type)
    }
    setAudit(kmem.auditing)
  }

  @inline(never) private func faultWrongSize() {
    let kmem = memory.kmem
    let type = kmem.type(named: Name("console"))
    setAudit(.on)
    if let object = kmem.alloc(Self.small, type: type) {
      kmem.free(object, size: Self.larger, type: type)
      // Where the report returned, nothing was changed: the object is still to be freed.
      kmem.free(object, size: Self.small, type: type)
    }
    setAudit(kmem.auditing)
  }

  @inline(never) private func faultForeignPointer() {
    let kmem = memory.kmem
    let type = kmem.type(named: Name("console"))
    setAudit(.on)
    // The console's own memory, which came from no cache.
    kmem.free(UnsafeMutableRawPointer(state), size: Self.small, type: type)
    setAudit(kmem.auditing)
  }

  /// Repeats a command until a key is pressed. Where nobody can press one it runs once.
  func watch(_ arguments: Arguments) throws(CommandError) {
    var seconds: UInt64 = 2
    guard arguments.count > 1 else { throw refuse("Watch what? As in: watch 2 frames") }
    let first = arguments[1]
    if let number = try? Figures.number(first.bytes) {
      _ = arguments.nextOfAnyForm()
      seconds = number
      guard seconds >= 1 && seconds <= 3600 else { throw refuse(first, "from 1 to 3600 seconds") }
    }
    guard let rest = arguments.rest() else { throw refuse("Watch what? As in: watch 2 frames") }
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
    /// As typed; nil for the fill, whose size is the machine's.
    let command: StaticString?
  }

  private static let stops: InlineArray<13, Stop> = [
    Stop(sentence: "what did the firmware give? Only \"usable\" may be touched.", command: "memmap"),
    Stop(sentence: "where is it now? Every frame has one role, and they add up.", command: "frames"),
    Stop(sentence: "the same as a picture: capitals can't move, dots are free.", command: "map"),
    Stop(sentence: "free memory comes in blocks of 2^n frames; long ones are precious.", command: "buddy"),
    Stop(
      sentence: "would two megabytes in one run be had? Asking takes nothing.", command: "why 2M align=2M"),
    Stop(sentence: "the processor sees addresses through tables like this one.", command: "pagetable"),
    Stop(sentence: "addresses are handed out by arenas, each fed by the one above.", command: "vmem"),
    Stop(
      sentence: "small objects: some of each size, filled, checked, given back.", command: "selftest objects"),
    Stop(sentence: "they came from slabs: pages cut into parts of one size.", command: "kmem"),
    Stop(sentence: "the work: all that a real kernel allocated, stamped and checked.", command: "replay"),
    Stop(sentence: "pageable memory: scattered pages, each stamped with what it is.", command: nil),
    Stop(
      sentence: "two megabytes in one run, all the same: what is in the way goes.",
      command: "contig -v 2M align=2M"),
    Stop(sentence: "and nobody has noticed: every page is what it was.", command: "verify"),
  ]

  /// A walk: a sentence, the command as typed, its screen. On a terminal Enter goes on and `q` ends it. What
  /// it took is given back, wherever it ends.
  func tour() throws(CommandError) {
    let (fills, lastID) = (fillCount, contigEntries.pointee.lastID)
    defer {
      giveBackContig(above: lastID)
      freeFills(from: fills)
    }
    try walk()
  }

  /// As full as can be, so that something must be written to make room; where there is no disk to write to, so
  /// full that there is room to move.
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
      // A machine without a trace, or too small for it, has a tour all the same.
      if let error, error != .unfit {
        if !json {
          print("The tour ends here; what it took is given back.")
          if fillCount > 0 { print("! Memory may be in use already. Type: dirty free") }
        }
        throw error
      }
      // A listing that was left early ends the listing, not the tour.
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
      print("That was the tour; what it took is given back. help tells what else there is.")
    }
  }
}
