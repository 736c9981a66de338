// why: a request for contiguous memory without doing it. Yes and where; not now and what stands in the
// way, drawn on the map; or never, and why not.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension Console {
  private static var whyUsage: StaticString { "why SIZE [low=A] [high=A] [align=SIZE] [boundary=SIZE]" }

  func why(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw refuse("How much? Usage: \(Self.whyUsage)")
    }
    let size = try arguments.size(word)
    guard size > .zero else { throw refuse(word, "a run of no bytes is always granted") }
    var constraints = RunConstraints()
    if let low = arguments.value(of: "low") { constraints.low = PhysicalAddress(try address(low, arguments)) }
    if let high = arguments.value(of: "high") {
      constraints.high = PhysicalAddress(try address(high, arguments))
    }
    if let word = arguments.value(of: "align") {
      constraints.alignment = try power(word, arguments, "an alignment")
    }
    if let word = arguments.value(of: "boundary") {
      constraints.boundary = try power(word, arguments, "a boundary")
    }
    try arguments.end(Self.whyUsage)

    let count = size.pagesRoundedUp
    let answer = physical.explain(run: count, where: constraints)
    switch answer.verdict {
    case .granted: granted(answer.run.unsafelyUnwrapped)
    case .short, .emptiable, .blocked: notNow(answer, answer.run.unsafelyUnwrapped)
    case .never: never(count, constraints)
    }
  }

  /// An address as `0x…`, or a size, which is an address too.
  private func address(_ word: Word, _ arguments: Arguments) throws(CommandError) -> UInt64 {
    if word.bytes.count > 1 && Figures.lower(word.bytes[1]) == UInt8(ascii: "x") {
      return try arguments.address(word)
    }
    return try arguments.size(word).rawValue
  }

  private func power(_ word: Word, _ arguments: Arguments, _ what: StaticString) throws(CommandError)
    -> Alignment
  {
    let size = try arguments.size(word).rawValue
    if let alignment = Alignment(size) { return alignment }
    guard size > 0, size < 1 << 62 else { throw refuse(word, "\(what) is a power of two") }
    let below = UInt64(1) << UInt64(63 - size.leadingZeroBitCount)
    throw refuse(word, "\(what) is a power of two: try \(short(below)) or \(short(below * 2))")
  }

  /// A power of two as one would type it.
  private func short(_ size: UInt64) -> Line {
    var value = size
    var unit: StaticString = ""
    if size >> 30 != 0 {
      (value, unit) = (size >> 30, "G")
    } else if size >> 20 != 0 {
      (value, unit) = (size >> 20, "M")
    } else if size >> 10 != 0 {
      (value, unit) = (size >> 10, "K")
    }
    return "\(value)\(unit)"
  }

  // MARK: The answers

  private func granted(_ run: FrameRun) {
    if isJSON {
      row("why") { row in
        row.field("answer", text: "yes")
        row.field("at", text: physicalAddress(run.first))
        row.field("first_frame", UInt64(run.first.rawValue))
        row.field("frames", run.count.rawValue)
      }
      return
    }
    print(
      "Yes: \(count: run.count.rawValue, "free frame") at \(physicalAddress(run.first)). Nothing has been done."
    )
    strip(run, mark: nil)
    let after = physical.freeCount.rawValue - min(physical.freeCount.rawValue, run.count.rawValue)
    print(
      "After it \(count: after, "frame") would be free; normal requests leave \(count: physical.reserve(for: .normal).rawValue)."
    )
  }

  private func notNow(_ answer: RunExplanation, _ run: FrameRun) {
    let blocked = answer.unmovable + answer.other
    let free = physical.freeCount
    let needed = run.count + physical.reserve(for: .normal)
    let missing = needed > free ? needed - free : .zero
    if isJSON {
      row("why") { row in
        row.field("answer", text: "not now")
        row.field("at", text: physicalAddress(run.first))
        row.field("first_frame", UInt64(run.first.rawValue))
        row.field("frames", run.count.rawValue)
        row.field("free", answer.free.rawValue)
        row.field("movable", answer.other.rawValue)
        row.field("unmovable", answer.unmovable.rawValue)
        row.field("missing", missing.rawValue)
        if let longest = answer.longest {
          row.field("longest_at", text: physicalAddress(longest.first))
          row.field("longest_frames", longest.count.rawValue)
        }
      }
      for i in 0..<answer.blockerCount {
        guard let blocker = answer.blockers[i] else { continue }
        row("blocker") { row in
          row.field("first_frame", UInt64(blocker.run.first.rawValue))
          row.field("frames", blocker.run.count.rawValue)
          row.field("role", text: Line(blocker.role.words))
          row.field("wires", UInt64(blocker.claims.wires))
        }
      }
      return
    }
    if missing > .zero {
      print(
        "Not now: \(count: missing.rawValue, "frame") too few are free; normal requests leave \(count: physical.reserve(for: .normal).rawValue)."
      )
    } else if blocked == .one {
      print("Not now: one frame stands in the way. Nothing has been done.")
    } else {
      print("Not now: \(count: blocked.rawValue, "frame") in use at the best place. Nothing has been done.")
    }
    let first = answer.blockers[0]?.run.first
    strip(run, mark: first)
    var line: Line = "\(count: run.count.rawValue, "frame"): \(count: answer.free.rawValue) free"
    if answer.other > .zero { line.append(line: ", \(count: answer.other.rawValue) that could move") }
    if answer.unmovable > .zero { line.append(line: ", \(count: answer.unmovable.rawValue) that can't move") }
    print(line)
    var shown = PageCount.zero
    for i in 0..<min(answer.blockerCount, showsAll ? 8 : 4) {
      guard let blocker = answer.blockers[i] else { continue }
      shown = shown + blocker.run.count
      var line: Line = "blocker  "
      if blocker.run.count == .one {
        line.append(line: "frame \(blocker.run.first)")
      } else {
        line.append(line: "frames \(blocker.run.first) to \(FrameNumber(blocker.run.end.rawValue - 1))")
      }
      line.append(line: ": \(blocker.role.words)")
      let wires = UInt64(blocker.claims.wires)
      if wires == 1 {
        line.append(", wired once")
      } else if wires > 1 {
        line.append(line: ", wired \(wires) times")
      }
      print(line)
    }
    if shown < blocked { print("         and \(count: (blocked - shown).rawValue, "frame") more") }
    if let longest = answer.longest {
      print("longest  \(longest.count.bytes) in one piece is free, at \(physicalAddress(longest.first))")
    }
    if missing > .zero {
      print("! It is shortage. Type: frames")
    } else if let first {
      print("! Type: whatis frame \(first)")
    }
  }

  private func never(_ count: PageCount, _ constraints: RunConstraints) {
    let (low, high) = (constraints.low.rawValue, constraints.high.rawValue)
    var reason: Line
    if let boundary = constraints.boundary, boundary.rawValue < count.bytes.rawValue {
      reason =
        "a run of \(count.bytes) crosses a multiple of \(ByteCount(boundary.rawValue)) wherever it lies"
    } else if low >= high || high - low < count.bytes.rawValue {
      reason = "from low to high there is less than \(count.bytes)"
    } else if count > physical.total {
      reason = "all memory of this machine is \(physical.total.bytes)"
    } else {
      reason = "no stretch of memory satisfies that, whoever gives what back"
    }
    if isJSON {
      row("why") { row in
        row.field("answer", text: "never")
        row.field("frames", count.rawValue)
        row.field("reason", text: reason)
      }
      return
    }
    print("Never on this machine: \(reason).")
  }

  /// All of memory in a line, with the run underlined and one frame pointed at.
  private func strip(_ run: FrameRun, mark: FrameNumber?) {
    let end = UInt64(memory.map.end.rawValue)
    var perCell: UInt64 = 1
    while perCell * 64 < end { perCell *= 2 }
    strip("0", cells(0, framesPerCell: perCell), "\(PageCount(perCell * 64).bytes)")
    let (from, to) = (Int(UInt64(run.first.rawValue) / perCell), Int(UInt64(run.end.rawValue - 1) / perCell))
    var line = Line()
    line.append(blanks: 3 + from)
    for _ in from...to { line.append(byte: UInt8(ascii: mark == nil && from == to ? "^" : "=")) }
    let label: Line = " \(physicalAddress(run.first))+\(short(run.count.bytes))"
    if line.count + label.count <= width {
      line.append(line: label)
    } else {
      var before = Line()
      before.append(blanks: 3 + from - label.count - 1)
      before.append(line: "\(physicalAddress(run.first))+\(short(run.count.bytes)) ")
      for _ in from...to { before.append(byte: UInt8(ascii: mark == nil && from == to ? "^" : "=")) }
      line = before
    }
    print(line)
    line = "a character is \(PageCount(perCell).bytes)"
    if let mark {
      let column = 3 + Int(UInt64(mark.rawValue) / perCell)
      let label: Line = "frame \(mark)"
      if column >= line.count + 2 && column + 2 + label.count <= width {
        line.append(blanks: column - line.count)
        line.append("^ ")
        line.append(line: label)
      } else if column >= line.count + label.count + 3 {
        line.append(blanks: column - line.count - label.count - 1)
        line.append(line: label)
        line.append(" ^")
      } else {
        var pointer = Line()
        pointer.append(blanks: column)
        pointer.append("^ ")
        pointer.append(line: label)
        print(pointer)
      }
    }
    print(line)
  }

  /// A size as a range has it: `512M`.
  private func short(_ size: ByteCount) -> Line {
    let bytes = size.rawValue
    if bytes & (1 << 30 - 1) == 0 { return "\(bytes >> 30)G" }
    if bytes & (1 << 20 - 1) == 0 { return "\(bytes >> 20)M" }
    if bytes & (1 << 10 - 1) == 0 { return "\(bytes >> 10)K" }
    return "\(bytes)"
  }
}
