// One line of ftrace's text, as `/sys/kernel/tracing/trace` prints it:
//
//   mkdir-183     [001] ...1.     8.991063: mm_page_free: page=0000000061d822d4 pfn=0x100946 order=1
//   task-pid      [cpu] flags     seconds:  event: key=value key=value …
//
// A task's name may hold any character, blanks and brackets included. So the parser searches for the first `[cpu]`
// that is followed by flags, a time and an event's name. The third flag tells hard from soft interrupts; a trace
// without flags (option irq-info off) is taken as all threads.
// Source: Documentation/trace/ftrace.rst and include/trace/events/kmem.h of Linux 6.1.

import Workloads

typealias Text = Slice<UnsafeBufferPointer<UInt8>>

/// The parts of one line.
struct FtraceLine {
  enum Sort {
    case event(FtraceLine)
    /// A comment or an empty line.
    case comment
    /// ftrace's own note that its buffer ran over, with the number of events lost if it says so.
    case lost(UInt64)
    case unreadable
  }

  let processor: UInt32
  let context: TraceContext
  let event: Text
  private let fields: Text

  static func parse(_ bytes: UnsafeBufferPointer<UInt8>) -> Sort {
    var line = bytes[...]
    if line.last == UInt8(ascii: "\r") { line.removeLast() }
    line = line.trimmed
    guard let first = line.first, first != UInt8(ascii: "#") else { return .comment }
    var rest = line
    while let open = rest.firstIndex(of: UInt8(ascii: "[")) {
      rest = rest[(open + 1)...]
      if let found = FtraceLine(afterBracket: rest) { return .event(found) }
    }
    return lost(line).map { .lost($0) } ?? .unreadable
  }

  private init?(afterBracket text: Text) {
    guard let close = text.firstIndex(of: UInt8(ascii: "]")), let processor = text[..<close].decimal else {
      return nil
    }
    var rest = text[(close + 1)...]
    guard var word = rest.takeWord() else { return nil }
    var context = TraceContext.thread
    if !word.isTime {
      guard word.count >= 3 else { return nil }
      switch word[word.startIndex + 2] {
      case UInt8(ascii: "s"): context = .softInterrupt
      case UInt8(ascii: "h"), UInt8(ascii: "H"), UInt8(ascii: "z"), UInt8(ascii: "Z"):
        context = .hardInterrupt
      default: break
      }
      guard let next = rest.takeWord(), next.isTime else { return nil }
      word = next
    }
    guard let name = rest.takeWord(), name.last == UInt8(ascii: ":"), name.count > 1, processor < 1 << 16
    else {
      return nil
    }
    self.processor = UInt32(processor)
    self.context = context
    event = name.dropLast()
    fields = rest
  }

  /// `CPU:0 [LOST 123 EVENTS]`, or `[LOST EVENTS]` where ftrace could not count.
  private static func lost(_ line: Text) -> UInt64? {
    guard line.starts(with: "CPU:"), let open = line.firstIndex(of: UInt8(ascii: "[")) else { return nil }
    var rest = line[(open + 1)...]
    guard let word = rest.takeWord(), word == "LOST", let number = rest.takeWord() else { return nil }
    return number.decimal ?? 0
  }

  // MARK: Fields

  /// The text behind `key=`, up to the next blank.
  func text(_ key: StaticString) -> Text? {
    var rest = fields
    let length = key.utf8CodeUnitCount
    while let word = rest.takeWord() {
      if word.count > length, word[word.startIndex + length] == UInt8(ascii: "="), word.prefix(length) == key
      {
        return word.dropFirst(length + 1)
      }
    }
    return nil
  }

  func decimal(_ key: StaticString) -> UInt64? { text(key)?.decimal }

  /// A pointer, as hashed by the kernel; `(null)` is zero.
  func pointer(_ key: StaticString) -> UInt64? {
    guard let text = text(key) else { return nil }
    return text == "(null)" ? 0 : text.starts(with: "0x") ? text.dropFirst(2).hexadecimal : text.hexadecimal
  }

  /// A frame number: `0x100946`, or decimal as older kernels print it.
  func frame(_ key: StaticString) -> UInt64? {
    guard let text = text(key) else { return nil }
    return text.starts(with: "0x") ? text.dropFirst(2).hexadecimal : text.decimal
  }

  /// The flags of interest in `gfp_flags`, and in `migratetype` for frames.
  var flags: (TraceFlags, TraceAddressLimit) {
    var (flags, limit) = (TraceFlags(), TraceAddressLimit.none)
    for name in (text("gfp_flags") ?? fields.prefix(0)).split(separator: UInt8(ascii: "|")) {
      if name == "__GFP_ZERO" {
        flags.insert(.zero)
      } else if name == "GFP_ATOMIC" || name == "__GFP_HIGH" {
        flags.insert(.atomic)
      } else if name == "GFP_NOWAIT" {
        flags.insert(.noWait)
      } else if name == "__GFP_MOVABLE" {
        flags.insert(.movable)
      } else if name == "__GFP_RECLAIMABLE" {
        flags.insert(.reclaimable)
      } else if name == "GFP_DMA" || name == "__GFP_DMA" {
        limit = .dma
      } else if name == "GFP_DMA32" || name == "__GFP_DMA32" {
        limit = .dma32
      } else if name == "GFP_HIGHUSER" || name == "__GFP_HIGHMEM" {
        limit = .highmem
      } else if name == "GFP_HIGHUSER_MOVABLE" || name.starts(with: "GFP_TRANSHUGE") {
        flags.insert(.movable)
        limit = .highmem
      }
    }
    if text("migratetype").map({ $0 == "1" }) == true { flags.insert(.movable) }
    return (flags, limit)
  }
}

extension Text {
  static func == (a: Text, b: StaticString) -> Bool {
    a.count == b.utf8CodeUnitCount && a.elementsEqual(UnsafeBufferPointer(start: b.utf8Start, count: a.count))
  }

  func starts(with prefix: StaticString) -> Bool { self.prefix(prefix.utf8CodeUnitCount) == prefix }

  var string: String { String(decoding: self, as: UTF8.self) }

  var trimmed: Text {
    var text = self
    while text.first?.isBlank == true { text.removeFirst() }
    while text.last?.isBlank == true { text.removeLast() }
    return text
  }

  /// Removes the next word from the front.
  mutating func takeWord() -> Text? {
    var start = startIndex
    while start < endIndex, self[start].isBlank { start += 1 }
    var end = start
    while end < endIndex, !self[end].isBlank { end += 1 }
    defer { self = self[end...] }
    return start == end ? nil : self[start..<end]
  }

  var decimal: UInt64? { number(base: 10) }
  var hexadecimal: UInt64? { number(base: 16) }

  private func number(base: UInt64) -> UInt64? {
    var value: UInt64 = 0
    for byte in self {
      let digit: UInt64
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = UInt64(byte - UInt8(ascii: "0"))
      case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = UInt64(byte - UInt8(ascii: "a")) + 10
      default: return nil
      }
      let (product, over) = value.multipliedReportingOverflow(by: base)
      guard digit < base, !over, product <= .max - digit else { return nil }
      value = product + digit
    }
    return isEmpty ? nil : value
  }

  /// `8.991063:`
  fileprivate var isTime: Bool {
    guard last == UInt8(ascii: ":"), let dot = firstIndex(of: UInt8(ascii: ".")) else { return false }
    return self[..<dot].decimal != nil && self[(dot + 1)...].dropLast().decimal != nil
  }
}

extension UInt8 {
  fileprivate var isBlank: Bool { self == UInt8(ascii: " ") || self == UInt8(ascii: "\t") }
}
