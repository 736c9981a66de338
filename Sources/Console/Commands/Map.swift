// map: a picture of physical memory. The hardest frame of a cell decides its case: one wired frame makes
// it upper-case, for no contiguous run can pass there.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension FrameRole {
  /// The character that stands for it: upper case can't move, lower case can, a dot is free.
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
    case .lent: UInt8(ascii: "L")
    case .absent: UInt8(ascii: "-")
    }
  }
}

extension Console {
  /// The character of `count` frames from `first` on.
  func cell(_ first: UInt64, _ count: UInt64) -> UInt8 {
    guard first < UInt64(FrameNumber.limit) else { return FrameRole.absent.letter }
    var counts = InlineArray<18, UInt64>(repeating: 0)
    let end = min(UInt64(FrameNumber.limit), first + count)
    physical.forEachRole(from: FrameNumber(UInt32(first)), to: FrameNumber(UInt32(end))) { run, role in
      counts[Int(role.rawValue)] += run.count.rawValue
    }
    // What can't move, else what can, else what is free; of each the one with the most frames.
    var best = FrameRole.absent
    var bestRank: UInt64 = 0
    for value in 0..<FrameRole.count where counts[value] > 0 {
      guard let role = FrameRole(rawValue: UInt8(value)) else { continue }
      let hardness: UInt64 = role == .absent ? 0 : role == .free ? 1 : role.isMovable ? 2 : 3
      let rank = hardness << 48 + counts[value]
      if rank > bestRank { (best, bestRank) = (role, rank) }
    }
    return best.letter
  }

  func cells(_ first: UInt64, framesPerCell: UInt64) -> Picture.Cells {
    var cells = Picture.Cells(repeating: UInt8(ascii: " "))
    for i in 0..<Picture.columns { cells[i] = cell(first + UInt64(i) * framesPerCell, framesPerCell) }
    return cells
  }

  func map(_ arguments: Arguments) throws(CommandError) {
    var (first, end) = (UInt64(0), UInt64(memory.map.end.rawValue))
    let word = arguments.nextOfAnyForm()
    if let word {
      let (start, length) = try arguments.range(word, length: .mebibytes(2))
      try arguments.end("map [ADDRESS+SIZE] [-a]")
      first = start >> Page.shift
      let (sum, wraps) = start.addingReportingOverflow(length.rawValue - 1)
      let last = (wraps ? UInt64.max : sum) >> Page.shift
      guard first < end else {
        throw refuse(
          word, "there is no memory: it ends at \(hex: end << Page.shift, digits: Int(physicalDigits))")
      }
      end = min(last, end - 1) + 1
    }
    if isJSON {
      physical.forEachRole(from: FrameNumber(UInt32(first)), to: FrameNumber(UInt32(end))) { run, role in
        row("map") { row in
          row.field("from", text: physicalAddress(run.first))
          row.field("first_frame", UInt64(run.first.rawValue))
          row.field("frames", run.count.rawValue)
          row.field("role", text: Line(role.words))
        }
      }
      return
    }
    // A cell is a power of two of frames, as small as a screen allows.
    var perCell: UInt64 = 1
    while end - first > perCell * 64 * 20 { perCell *= 2 }
    let perLine = perCell * 64
    var picture = Picture(self)
    var at = first & ~(perCell - 1)
    while at < end {
      picture.add(physicalAddress(FrameNumber(UInt32(at))), cells(at, framesPerCell: perCell))
      if shouldStop { return }
      at += perLine
    }
    picture.finish()
    let cellSize: Line = perCell == 1 ? "a frame" : "\(PageCount(perCell).bytes)"
    if word != nil {
      var (free, fixed, other) = (UInt64(0), UInt64(0), UInt64(0))
      physical.forEachRole(from: FrameNumber(UInt32(first)), to: FrameNumber(UInt32(end))) { run, role in
        if role == .absent { return }
        if role == .free {
          free += run.count.rawValue
        } else if role.isMovable {
          other += run.count.rawValue
        } else {
          fixed += run.count.rawValue
        }
      }
      var line: Line = "a character is \(cellSize), a line \(PageCount(perLine).bytes): \(count: free) free"
      if other > 0 { line.append(line: ", \(count: other) can move") }
      line.append(line: ", \(count: fixed) can't move")
      print(line)
      return
    }
    print("a character is \(cellSize), a line \(PageCount(perLine).bytes)")
    print(". free   a pageable  z zspage  - no memory")
    print("X image  M module  B boot  R records  T tables  G stack  V tags  N statistics")
    print("S slab   K kmem    W wired  C contiguous  L lent       upper case can't move")
  }
}
