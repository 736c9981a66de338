// map: a picture of physical memory. The hardest frame of a cell decides its case: one wired frame makes
// it upper-case, for no contiguous run can pass there.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

extension CommandDescription {
  static var map: CommandDescription {
    CommandDescription(
      name: "map", usage: "map [ADDRESS+SIZE] [-a] [-d]",
      about: """
        A picture of physical memory, a character a block or a frame. Upper case
        can't move, lower case can, a dot is free. -a repeats lines that look
        alike. -d puts a line of density under each: a dot is free, a digit tenths
        in use, # all in use.
        """,
      example: "map 0x10_0000+2M", question: .use)
  }
}

extension FrameRole {
  /// The character of a role: upper case can't move, lower case can, a dot is free.
  var letter: UInt8 {
    switch self {
    case .free: UInt8(ascii: ".")
    case .wired: UInt8(ascii: "W")
    case .slab: UInt8(ascii: "S")
    case .kmem: UInt8(ascii: "K")
    case .pageTable: UInt8(ascii: "T")
    case .stack: UInt8(ascii: "G")
    case .tags: UInt8(ascii: "V")
    case .records: UInt8(ascii: "R")
    case .image: UInt8(ascii: "X")
    case .bootModule: UInt8(ascii: "M")
    case .boot: UInt8(ascii: "B")
    case .statistics: UInt8(ascii: "N")
    case .contiguous: UInt8(ascii: "C")
    case .pageable: UInt8(ascii: "a")
    case .zspage: UInt8(ascii: "z")
    case .paging: UInt8(ascii: "P")
    case .loaned: UInt8(ascii: "L")
    case .absent: UInt8(ascii: "-")
    }
  }
}

/// The counts of frames in an extent that decide its character.
struct FrameTally {
  private var roles = InlineArray<18, UInt64>(repeating: 0)
  /// Pages that are wired, and others that are held, brought in, moved or written out.
  var wired: UInt64 = 0
  var claimed: UInt64 = 0
  /// Other pages, as far as their records were read.
  var active: UInt64 = 0
  var inactive: UInt64 = 0
  /// Dirty pages, in any queue.
  var dirty: UInt64 = 0

  mutating func add(_ role: FrameRole, _ frames: PageCount) { roles[Int(role.rawValue)] += frames.rawValue }
  func count(_ role: FrameRole) -> UInt64 { roles[Int(role.rawValue)] }

  /// Pages that could be moved now.
  var pages: UInt64 {
    let all = count(.pageable)
    return all - min(all, wired + claimed)
  }
  var free: UInt64 { count(.free) }
  var movable: UInt64 { pages + count(.zspage) }
  /// Frames that can't be moved, or not now.
  var unmovable: UInt64 {
    var sum = min(count(.pageable), wired + claimed)
    for value in 0..<FrameRole.count {
      guard let role = FrameRole(rawValue: UInt8(value)), role != .free, role != .absent, !role.isMovable
      else { continue }
      sum += count(role)
    }
    return sum
  }

  /// The character for the extent: frames that can't move come first, then busy ones, then movable ones, then free
  /// ones. Within a group, the most frequent decides.
  var letter: UInt8 {
    var best = FrameRole.absent
    var most = wired
    if wired > 0 { best = .wired }
    for value in 0..<FrameRole.count {
      guard let role = FrameRole(rawValue: UInt8(value)), role != .free, role != .absent, !role.isMovable
      else { continue }
      let frames = count(role) + (role == .wired ? wired : 0)
      if frames > most { (best, most) = (role, frames) }
    }
    if most > 0 { return best.letter }
    if claimed > 0 { return UInt8(ascii: "!") }
    if movable > 0 { return count(.zspage) > pages ? FrameRole.zspage.letter : pageLetter }
    return (free > 0 ? FrameRole.free : .absent).letter
  }

  private var pageLetter: UInt8 {
    // Dirty comes before the queue, because it decides the cost of a request; so both levels of detail agree.
    if dirty * 2 > pages { return UInt8(ascii: "d") }
    return inactive * 2 > pages ? UInt8(ascii: "i") : UInt8(ascii: "a")
  }
}

extension Shell {
  private static var pageblockFrames: UInt64 { 512 }

  /// The level of detail at which pages are read.
  enum Closeness: UInt8 {
    /// The record of each page.
    case pages
    /// The counts of pageblocks that lie wholly in the extent. They include wired and dirty pages, but neither claims
    /// nor queues.
    case pageblocks
  }

  /// Counts the frames in `count` frames from `first` on. Reads the record of each page, or the counts of each
  /// pageblock and the runs in it that can't move.
  func tally(_ first: UInt64, _ count: UInt64, by closeness: Closeness) -> FrameTally {
    var tally = FrameTally()
    // Frames behind the last pageblock that has memory are a hole like any other.
    let mapEnd = (UInt64(memory.map.end.rawValue) | (Self.pageblockFrames - 1)) + 1
    let end = min(mapEnd, first + count)
    guard first < end else { return tally }
    if closeness == .pages {
      addFrames(first, end, &tally)
      return tally
    }
    var at = first
    while at < end {
      // A large free block, or a hole, is counted as a whole, because large machines consist mostly of these.
      if let (last, role) = physical.lastOfBlockOrHole(at: FrameNumber(UInt32(at))),
        UInt64(last.rawValue) > at + Self.pageblockFrames
      {
        let extentEnd = min(end, UInt64(last.rawValue) + 1)
        if role == .free { tally.add(.free, PageCount(extentEnd - at)) }
        at = extentEnd
        continue
      }
      let pageblockEnd = min(end, (at | (Self.pageblockFrames - 1)) + 1)
      if pageblockEnd - at == Self.pageblockFrames {
        addPageblock(at, &tally)
      } else {
        addFrames(at, pageblockEnd, &tally)
      }
      at = pageblockEnd
    }
    return tally
  }

  private func addPageblock(_ first: UInt64, _ tally: inout FrameTally) {
    guard let counts = physical.pageblockCounts(at: FrameNumber(UInt32(first))) else {
      // A hole, or its edge.
      addFrames(first, first + Self.pageblockFrames, &tally)
      return
    }
    if counts.unmovable == .zero && (counts.other == .zero || physical.count(.zspage) == .zero) {
      tally.add(.free, counts.free)
      tally.add(.absent, counts.absent)
      tally.add(.pageable, counts.other)
    } else {
      var unmovable = PageCount.zero
      forEachRole(first, first + Self.pageblockFrames) { run, role in
        tally.add(role, run.count)
        if role != .free && role != .absent && !role.isMovable { unmovable = unmovable + run.count }
      }
      // The other frames that can't move are wired pages.
      if counts.unmovable > unmovable { tally.wired += (counts.unmovable - unmovable).rawValue }
    }
    tally.dirty += counts.dirty.rawValue
  }

  private func addFrames(_ first: UInt64, _ end: UInt64, _ tally: inout FrameTally) {
    forEachRole(first, end) { run, role in
      tally.add(role, run.count)
      guard role == .pageable else { return }
      for i in 0..<run.count.rawValue {
        guard let record = physical.record(run.first + PageCount(i)), record.role == .pageable else {
          continue
        }
        let busyWord = record.busyWord
        if busyWord.wires > 0 {
          tally.wired += 1
        } else if busyWord.holds > 0 || busyWord.sbusyCount > 0 || busyWord.isXbusy {
          tally.claimed += 1
        } else {
          if record.pageFlags.contains(.dirty) { tally.dirty += 1 }
          if record.queue == .active { tally.active += 1 } else { tally.inactive += 1 }
        }
      }
    }
  }

  private func forEachRole(_ first: UInt64, _ end: UInt64, _ body: (FrameRun, FrameRole) -> Void) {
    guard first < UInt64(FrameNumber.limit) else { return }
    physical.forEachRole(from: FrameNumber(UInt32(first)), to: FrameNumber(UInt32(end)), body)
  }

  /// The level of detail for a cell of `frames` frames.
  private func closeness(of frames: UInt64) -> Closeness {
    frames < Self.pageblockFrames ? .pages : .pageblocks
  }

  /// The character of `count` frames from `first` on.
  func cell(_ first: UInt64, _ count: UInt64) -> UInt8 {
    guard first < UInt64(FrameNumber.limit) else { return FrameRole.absent.letter }
    let letter = tally(first, count, by: closeness(of: count)).letter
    if count == 1 && letter == FrameRole.free.letter
      && physical.whatIs(FrameNumber(UInt32(first))).pageFlags.contains(.cached)
    {
      return UInt8(ascii: "c")
    }
    return letter
  }

  func cells(_ first: UInt64, framesPerCell: UInt64) -> Picture.Cells {
    var cells = Picture.Cells(repeating: UInt8(ascii: " "))
    for i in 0..<Picture.columns { cells[i] = cell(first + UInt64(i) * framesPerCell, framesPerCell) }
    return cells
  }

  /// The characters of a line of a picture of frames `first` to `end`, blank where it shows none of these.
  private func cells(_ at: UInt64, framesPerCell: UInt64, from first: UInt64, to end: UInt64) -> Picture.Cells
  {
    var cells = Picture.Cells(repeating: UInt8(ascii: " "))
    for i in 0..<Picture.columns {
      let cellFirst = max(first, at + UInt64(i) * framesPerCell)
      let cellEnd = min(end, at + UInt64(i + 1) * framesPerCell)
      if cellFirst < cellEnd { cells[i] = cell(cellFirst, cellEnd - cellFirst) }
    }
    return cells
  }

  /// The share of each cell's frames that are in use: a dot for none, a digit for tenths rounded down but at least one,
  /// `#` for all, a minus sign where there is no memory.
  private func densities(
    _ at: UInt64, framesPerCell: UInt64, from first: UInt64, to end: UInt64
  ) -> Picture.Cells {
    var cells = Picture.Cells(repeating: UInt8(ascii: " "))
    for i in 0..<Picture.columns {
      let cellFirst = max(first, at + UInt64(i) * framesPerCell)
      let cellEnd = min(end, at + UInt64(i + 1) * framesPerCell)
      guard cellFirst < cellEnd else { continue }
      let tally = tally(cellFirst, cellEnd - cellFirst, by: closeness(of: framesPerCell))
      let used = tally.movable + tally.unmovable
      let all = used + tally.free
      guard all > 0 else {
        cells[i] = FrameRole.absent.letter
        continue
      }
      let tenths = used * 10 / all
      cells[i] =
        used == 0
        ? UInt8(ascii: ".")
        : used == all ? UInt8(ascii: "#") : UInt8(ascii: "0") + UInt8(max(1, tenths))
    }
    return cells
  }

  /// Says which frames a range covers, where it does not cover them from end to end, or where memory ends before it.
  private func reportCovered(_ start: UInt64, _ length: ByteCount, _ first: UInt64, _ end: UInt64) {
    let covered = PageCount(end - first)
    guard start != first << Page.shift || covered.bytes != length else { return }
    print(
      "The range touches \(count: covered.rawValue, "frame") of memory: \(physicalAddress(FrameNumber(UInt32(first))))+\(RunAsked.spelled(covered.bytes))."
    )
  }

  /// The address of a frame in front of a line of a picture. A machine that needs more than eight digits omits
  /// leading zeroes, so that 64 characters fit beside it.
  func pictureLabel(_ frame: UInt64) -> Line {
    let address = physicalAddress(FrameNumber(UInt32(frame)))
    guard physicalDigits > 8 else { return address }
    let last = UInt64(memory.map.end.rawValue) << Page.shift - 1
    let digits = (64 - last.leadingZeroBitCount + 3) / 4
    let spared = address.count - 2 - digits - (digits - 1) / 4
    var label = Line("0x")
    // From 1 TiB on, the groups stand without a mark between them, so that a line still fits.
    let isTooWide = address.count - spared + 2 + Picture.columns > min(width, 80)
    for i in (2 + spared)..<address.count where !(isTooWide && address[i] == UInt8(ascii: "_")) {
      label.append(byte: address[i])
    }
    return label
  }

  /// A row for each run of frames of one role. A picture is no table: its characters stand for many runs at once.
  private func printRows(_ first: UInt64, _ end: UInt64) {
    forEachRole(first, end) { run, role in
      row("map") { row in
        row.field("from", text: physicalAddress(run.first))
        row.field("first_frame", UInt64(run.first.rawValue))
        row.field("frames", run.count.rawValue)
        row.field("role", text: Line(role.description))
        let pages =
          role == .pageable ? tally(UInt64(run.first.rawValue), run.count.rawValue, by: .pages) : nil
        row.field("wired", pages?.wired)
        row.field("claimed", pages?.claimed)
        row.field("dirty", pages?.dirty)
      }
    }
  }

  func map(_ arguments: Arguments) throws(CommandError) {
    var (first, end) = (UInt64(0), UInt64(memory.map.end.rawValue))
    let showsDensity = arguments.takeFlag("-d")
    let word = arguments.nextOfAnyForm()
    var typed: (start: UInt64, length: ByteCount)?
    if let word {
      let (start, length) = try arguments.range(word, length: .mebibytes(2))
      if word.bytes.firstIndex(of: UInt8(ascii: "+")) != nil { typed = (start, length) }
      try arguments.end()
      first = start >> Page.shift
      let (sum, wraps) = start.addingReportingOverflow(length.rawValue - 1)
      let last = (wraps ? UInt64.max : sum) >> Page.shift
      guard first < end else {
        throw refuse(
          word, "there is no memory: it ends at \(hex: end << Page.shift, digits: Int(physicalDigits))")
      }
      end = min(last, end - 1) + 1
    }
    if isJSON { return printRows(first, end) }
    if let typed { reportCovered(typed.start, typed.length, first, end) }
    // A cell is a power of two of frames, as small as a screen allows.
    var perCell: UInt64 = 1
    while end - first > perCell * 64 * 20 { perCell *= 2 }
    let perLine = perCell * 64
    var picture = Picture(self)
    var at = first & ~(perCell - 1)
    while at < end {
      picture.add(
        pictureLabel(at), cells(at, framesPerCell: perCell, from: first, to: end),
        below: showsDensity ? densities(at, framesPerCell: perCell, from: first, to: end) : nil)
      if shouldStop {
        _ = isStopped(
          "Stopped. The picture ends at \(physicalAddress(FrameNumber(UInt32(min(end, at + perLine))))).")
        return
      }
      at += perLine
    }
    picture.finish()
    let cellSize: Line = perCell == 1 ? "a frame" : "\(PageCount(perCell).bytes)"
    if word != nil { return printSums(first, end, perCell, cellSize) }
    print("a character is \(cellSize), a line \(PageCount(perLine).bytes)")
    print(". free   d dirty   a active, i inactive: clean  c cached  z zspage: can move")
    print("X image  M module  B boot  R records  T tables  G stack  V tags  - no memory")
    print("S slab   K kmem    W wired  C contiguous  P paging tables  N statistics  L loaned")
    print("Upper case can't move; nor can a page that is busy or held, which is a !")
  }
  /// Prints the scale of a picture, and how many of its frames can move.
  private func printSums(_ first: UInt64, _ end: UInt64, _ perCell: UInt64, _ cellSize: Line) {
    let tally = tally(first, end - first, by: closeness(of: perCell))
    let scale: Line = "a character is \(cellSize), a line \(PageCount(perCell * 64).bytes)"
    var sums: Line = "\(count: tally.free) free"
    if tally.movable > 0 { sums.append(line: ", \(count: tally.movable) can move") }
    sums.append(line: ", \(count: tally.unmovable) can't move")
    if scale.count + 2 + sums.count <= width {
      print("\(scale): \(sums)")
    } else {
      print(scale)
      print(sums)
    }
  }
}
