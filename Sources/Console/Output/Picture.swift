// Pictures of memory: a character a block or a page. Upper case can't move, lower case can, a dot is
// free; colour repeats it. Equal lines are printed once, with their count.

import MemoryPrimitives

/// A picture that is printed a line at a time.
struct Picture {
  static var columns: Int { 64 }
  typealias Cells = InlineArray<64, UInt8>

  let console: Shell
  private var before = Cells(repeating: 0)
  /// The line below the last one, where pictures have two.
  private var belowBefore: Cells?
  private var alike: UInt64 = 0
  private var pendingLabel = Line()
  private var isFirst = true

  init(_ console: Shell) { self.console = console }

  /// Adds a line of `cells` behind `label`, and under it one of `below`.
  mutating func add(_ label: Line, _ cells: Cells, below: Cells? = nil) {
    var same = !isFirst
    for i in 0..<Self.columns where cells[i] != before[i] { same = false }
    if let below, let belowBefore {
      for i in 0..<Self.columns where below[i] != belowBefore[i] { same = false }
    }
    isFirst = false
    if same && !console.showsAll {
      alike += 1
      pendingLabel = label
      return
    }
    printAlike()
    before = cells
    belowBefore = below
    draw(label, cells)
  }

  mutating func finish() { printAlike() }

  private mutating func printAlike() {
    guard alike > 0 else { return }
    if alike == 1 {
      draw(pendingLabel, before)
    } else {
      var line = Line("*")
      line.append(blanks: pendingLabel.count)
      line.append(line: "\(count: alike) more lines like it")
      console.print(line)
    }
    alike = 0
  }

  private func draw(_ label: Line, _ cells: Cells) {
    console.strip(label, cells, Line())
    guard let belowBefore else { return }
    var blank = Line()
    blank.append(blanks: label.count)
    console.strip(blank, belowBefore, Line())
  }
}

extension Shell {
  /// Whether a picture leaves a blank behind its label; a long one takes that too.
  func fitsBlank(_ label: Line) -> Bool { label.count + 3 + Picture.columns <= width }

  /// One line of a picture: `label |cells| tail`.
  func strip(_ label: Line, _ cells: Picture.Cells, _ tail: Line) {
    guard !shouldStop else { return }
    pageBreak(lines: 1)
    guard !state.pointee.stopped else { return }
    var line = label
    line.append(fitsBlank(label) ? " |" : "|")
    var tinted = Tint.plain
    for i in 0..<Picture.columns {
      let color = Self.tint(of: cells[i])
      if color != tinted {
        terminal.write(line)
        line = Line()
        tint(.plain)
        if color != .plain { tint(color) }
        tinted = color
      }
      line.append(byte: cells[i])
    }
    terminal.write(line)
    if tinted != .plain { tint(.plain) }
    line = Line("|")
    if tail.count > 0 {
      line.append(" ")
      line.append(line: tail)
    }
    terminal.write(line)
    newline()
  }

  private static func tint(of cell: UInt8) -> Tint {
    switch cell {
    case UInt8(ascii: "."): .free
    case UInt8(ascii: "!"): .wrong
    case UInt8(ascii: "A")...UInt8(ascii: "Z"): .unmovable
    default: .plain
    }
  }
}
