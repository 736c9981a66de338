// tour: a walk through all layers, a command and a sentence at a time.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads

extension CommandDescription {
  static var tour: CommandDescription {
    CommandDescription(
      name: "tour", usage: "tour",
      about: "A walk through all layers, a command and a sentence at a time.",
      example: "tour", question: .trial,
      arguments: .none)
  }
}

extension Shell {
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
    let (kept, lastID) = (fills.count, contigEntries.pointee.lastID)
    defer {
      giveBackContig(above: lastID)
      state.pointee.fills.release(from: kept, memory)
    }
    try walk()
  }

  /// Fills memory so far that a request must write pages; without a disk, so far that pages can still be moved.
  private var fillForTour: Line {
    let swap = memory.paging.swap.figures.free
    let capacity = physical.freeCount + swap
    let kept = memory.paging.freeTarget + physical.reserve(for: .normal)
    let percent = (capacity - min(capacity, kept)).rawValue * 100 / physical.total.rawValue / 5 * 5
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
          if fills.count > 0 { print("! Memory may be in use already. Type: dirty free") }
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
