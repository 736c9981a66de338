// The block of lines that reports a fault, and the stop after it.
//
// Everything here may run on any stack, with interrupts off, in a system that is known to be broken. It allocates
// nothing, acquires no lock, and reads memory only where the tables map it. A fault during a report ends with one
// line, a third with none. Of processors that have a fault at the same time only one gets here (`OtherProcessors`).

import CPlatform
import MemoryPrimitives
import Synchronization

enum FaultBlock {
  private static let depth = Atomic<UInt32>(0)

  /// Begins a block with the kind of fault, the processor and the thread. From here on no other processor runs. Does
  /// not return on a processor that comes second: it is listed in the block of the first.
  static func open(_ title: Line, at address: UInt64) {
    _ = cp_interrupts_disable()
    OtherProcessors.stop(toReport: address)
    let before = depth.add(1, ordering: .relaxed).oldValue
    if before > 1 { Stop.fault.now() }
    if before == 1 {
      SerialPort.print("FAULT  \(title), during the report above")
      field("at", Symbols.place(address))
      stop("")
    }
    let place: Line = "cpu \(cp_processor_index()), thread \(Executive.currentThreadName)"
    // The line before may have been left open, by a prompt or a progress bar.
    SerialPort.print("")
    var line: Line = "FAULT  \(title)"
    line.append(blanks: max(2, 80 - line.count - place.count))
    line.append(line: place)
    SerialPort.print(line)
  }

  /// Prints one row, a label and its text.
  static func field(_ label: Line, _ text: Line) {
    var head: Line = "  \(label)"
    head.append(blanks: 12 - head.count)
    print(text, behind: head)
  }

  /// Prints a sentence at the end of the block.
  static func printSentence(_ text: Line) {
    OtherProcessors.report()
    print(text, behind: "  ")
  }

  /// Ends the block and the machine.
  static func stop(_ words: Line) -> Never {
    let end: Line = "Stopped, exit status 37."
    if words.count == 0 {
      printSentence(end)
    } else if words.count + end.count < 78 {
      printSentence("\(words) \(end)")
    } else {
      printSentence(words)
      printSentence(end)
    }
    Stop.fault.now()
  }

  /// Prints `text` in lines of 80 columns, broken at blanks; the second and later ones begin under the first.
  private static func print(_ text: Line, behind head: Line) {
    let blank = UInt8(ascii: " ")
    let columns = 80 - head.count
    var line = head
    var start = 0
    while text.count - start > columns {
      var end = start + columns
      while end > start && text[end] != blank { end -= 1 }
      // A word longer than the line is cut.
      let next = end > start ? end + 1 : start + columns
      if end == start { end = next }
      for i in start..<end { line.append(byte: text[i]) }
      SerialPort.print(line)
      line = Line()
      line.append(blanks: head.count)
      start = next
    }
    for i in start..<text.count { line.append(byte: text[i]) }
    SerialPort.print(line)
  }
}

/// Prints the chain of callers, by the frame pointers. A caller that repeats, as in a recursion, is printed once with
/// its count. Answers whether any did.
@discardableResult
func printBacktrace(
  from framePointer: UInt64, innermost: UInt64? = nil, label: StaticString = "by way of", limit: Int = 24
) -> Bool {
  var printer = BacktracePrinter(label: label, limit: limit)
  if let innermost { printer.add(innermost) }
  var frame = framePointer
  for _ in 0..<100_000 {
    // A frame lies on a stack of the kernel: upper half, aligned, mapped.
    guard frame >> 47 == 0x1ffff, frame & 7 == 0, frame & 4095 <= 4080, TableWalk.isReadable(frame),
      let words = UnsafePointer<UInt64>(bitPattern: UInt(frame))
    else { break }
    let (caller, address) = (words[0], words[1])
    guard address != 0 else { break }
    printer.add(address)
    if address == Image.layout.interrupt_return {
      // Here the chain passes over the interrupted function: the words above this frame name it.
      let interrupted = UnsafePointer<cp_trap_frame>(bitPattern: UInt(frame + 16))
      printer.add((interrupted?.pointee.rip ?? 0) &+ 1)
    }
    guard caller > frame else { break }
    frame = caller
  }
  printer.finish()
  return printer.repeated
}

private struct BacktracePrinter {
  let label: StaticString
  let limit: Int
  private var last: UInt64 = 0
  private var count: UInt64 = 0
  private var lines = 0
  private var left: UInt64 = 0
  private(set) var repeated = false

  init(label: StaticString, limit: Int) {
    self.label = label
    self.limit = limit
  }

  mutating func add(_ address: UInt64) {
    if address == last {
      count += 1
      return
    }
    flush()
    last = address
    count = 1
  }

  private mutating func flush() {
    guard count > 0 else { return }
    if lines == limit {
      left += 1
      return
    }
    var text = Symbols.place(last, back: 1)
    if count > 1 {
      text.append(line: ", \(count: count) times")
      repeated = true
    }
    FaultBlock.field(lines == 0 ? "\(label)" : "", text)
    lines += 1
  }

  mutating func finish() {
    flush()
    if left > 0 { FaultBlock.field("", "and \(count: left) more") }
  }
}
