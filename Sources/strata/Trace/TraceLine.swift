// One line of what a recorder of Linux's events prints.
//
//   mkdir-183     [001] ...1.     8.991063: mm_page_free: page=0000000061d822d4 pfn=0x100946 order=1
//   task-pid      [cpu] flags     time:     event: key=value key=value …                (cat trace, trace-cmd report)
//   mkdir   183   [001]           8.991063: kmem:mm_page_free: key=value …              (perf script)
//   mkdir-183     1..s1.          12us :    mm_page_free: key=value …                   (latency format, dump in a log)
//
// A task's name may hold any character, blanks and brackets included. So the parser searches for the first `[cpu]`
// that is followed by flags, a time and an event's name. The third flag distinguishes hard from soft interrupts; a recording
// without flags (perf, or option irq-info off) is taken as all threads.
// Source: Documentation/trace/ftrace.rst, kernel/trace/trace_output.c and include/trace/events/kmem.h of Linux 3.2,
// 4.9 and 6.1; trace-cmd 2.9; perf 6.1.

import Workloads

/// An event, as a line has it.
struct TraceLine {
  /// A line, as far as it is understood.
  enum Sort {
    case event(TraceLine)
    /// A comment, a header or an empty line.
    case comment
    /// The header that says how many events there are, and so how many earlier ones were overwritten.
    case overwritten(UInt64)
    /// The recorder's own note that it lost events, with their number if it says so.
    case lost(UInt64?)
    /// A line of a call chain, or of a stack.
    case callChain
    /// A line without an event, and the kind of such lines.
    case other(String)
    /// A line of a form that does not have all that a packed trace needs.
    case form(TraceForm)
    case unreadable
  }

  let processor: UInt32
  let context: TraceContext
  let event: Text
  let fields: TraceFields

  static func parse(_ bytes: LineBytes) -> Sort {
    var line = bytes[...]
    if line.last == UInt8(ascii: "\r") { line.removeLast() }
    line = line.trimmed
    guard let first = line.first else { return .comment }
    if first == UInt8(ascii: "#") { return overwritten(line).map { .overwritten($0) } ?? .comment }
    if let sort = behindProcessor(line) ?? behindLatency(line) { return sort }
    let isLog = line.skipLogPrefix()
    if let lost = RecorderNote(line) { return lost.sort }
    if isCallChain(line) { return .callChain }
    if TraceForm.isFunctionGraph(line) { return .form(.functionGraph) }
    return isLog ? .other("of a kernel log") : .unreadable
  }

  // MARK: Where the event stands

  /// The part of a line behind the first `[cpu]` that has a time behind it.
  private static func behindProcessor(_ line: Text) -> Sort? {
    var rest = line
    while let open = rest.first("[") {
      rest = rest[(open + 1)...]
      guard let close = rest.first("]") else { return nil }
      guard let processor = rest[..<close].decimal, processor < 1 << 16 else { continue }
      var behind = rest[(close + 1)...]
      guard var word = behind.popWord() else { return nil }
      var context = TraceContext.thread
      if !word.isTime {
        guard word.count >= 3, let next = behind.popWord(), next.isTime else { continue }
        context = TraceContext(flags: word)
        word = next
      }
      if let sort = behindTime(behind, UInt32(processor), context) { return sort }
    }
    return nil
  }

  /// The part of a line behind `cpu` with flags at once and a time in microseconds.
  private static func behindLatency(_ line: Text) -> Sort? {
    var rest = line
    guard var word = rest.popWord() else { return nil }
    while let next = rest.popWord() {
      var flags = word
      let processor = flags.popDigits().decimal
      word = next
      guard let processor, processor < 1 << 16, flags.count >= 3 else { continue }
      let (isTime, hasColon) = next.latencyTime
      guard isTime, flags.allSatisfy(\.isFlag) else { continue }
      var behind = rest
      if !hasColon {
        guard let colon = behind.popWord(), colon == ":" else { continue }
      }
      if let sort = behindTime(behind, UInt32(processor), TraceContext(flags: flags)) { return sort }
    }
    return nil
  }

  /// The event behind a time.
  private static func behindTime(_ text: Text, _ processor: UInt32, _ context: TraceContext) -> Sort? {
    var rest = text
    guard var name = rest.popWord() else { return nil }
    // perf prints a period there if asked to, trace-cmd the time since the event before.
    if name.decimal != nil || (name.starts(with: "(") && name.ends(with: ")")) {
      guard let next = rest.popWord() else { return nil }
      name = next
    }
    guard name.last == UInt8(ascii: ":"), name.count > 1 else {
      if name.starts(with: "<stack") || name.starts(with: "<user") { return .callChain }
      if name.starts(with: "PERF_RECORD_LOST") { return .lost(rest.words(atMost: 9).last?.decimal) }
      if name.starts(with: "PERF_RECORD_") { return .other(name.string) }
      let caller = rest.popWord()
      return caller?.starts(with: "<-") == true ? .other("of the function tracer") : nil
    }
    name = name.dropLast()
    if name.starts(with: "kmem:") { name = name.dropFirst(5) }
    if name == "kernel_stack" || name == "user_stack" { return .callChain }
    return .event(
      TraceLine(processor: processor, context: context, event: name, fields: TraceFields(rest)))
  }

  // MARK: Other lines

  /// `# entries-in-buffer/entries-written: 140080/250280   #P:2`
  private static func overwritten(_ line: Text) -> UInt64? {
    let words = line.words(atMost: 4)
    guard words.count > 2, words[1] == "entries-in-buffer/entries-written:", let slash = words[2].first("/"),
      let kept = words[2][..<slash].decimal, let written = words[2][(slash + 1)...].decimal, kept < written
    else { return nil }
    return written - kept
  }

  /// `=> function`, or `27f1dc function+0x2 (/boot/vmlinux)`.
  private static func isCallChain(_ line: Text) -> Bool {
    if line.starts(with: "=>") { return true }
    var rest = line
    guard let address = rest.popWord(), address.hexadecimal != nil, !TraceFields(rest).isAllocation else {
      return false
    }
    return line.last == UInt8(ascii: ")") || (address.count >= 8 && rest.words(atMost: 2).count < 2)
  }
}

/// A note of a recorder about its own work: a header of its report, or events that it lost.
private struct RecorderNote {
  let sort: TraceLine.Sort

  init?(_ line: Text) {
    let words = line.words(atMost: 8)
    if let lost = Self.lost(line) {
      sort = lost
    } else if words.count == 3 && words[0] == "version" && words[1] == "=" && words[2].decimal != nil {
      sort = .comment
    } else if words.count == 1 && line.starts(with: "cpus=") && line.dropFirst(5).decimal != nil {
      sort = .comment
    } else if line.starts(with: "CPU")
      && (line.ends(with: "is empty") || line.ends(with: "[SUBBUFFER START]"))
    {
      sort = .comment
    } else if line.starts(with: "Check IO/CPU overload!") {
      sort = .comment
    } else {
      return nil
    }
  }

  /// `CPU:0 [LOST 123 EVENTS]`, `CPU:3 [123 EVENTS DROPPED]`, both also without a number, and `Processed 9 events and
  /// lost 4 chunks!`, which are not events.
  private static func lost(_ line: Text) -> TraceLine.Sort? {
    if line.starts(with: "Processed ") && line.ends(with: "chunks!") { return .lost(nil) }
    guard line.last == UInt8(ascii: "]"), let open = line.first("["),
      open == line.startIndex || line.starts(with: "CPU")
    else { return nil }
    let words = line[(open + 1)...].dropLast().words(atMost: 4)
    guard words.contains(where: { $0 == "EVENTS" }),
      words.contains(where: { $0 == "LOST" || $0 == "DROPPED" })
    else { return nil }
    return .lost(words.lazy.compactMap(\.decimal).first)
  }
}

extension TraceContext {
  /// The context that the third of the flags shows.
  fileprivate init(flags: Text) {
    switch flags[flags.startIndex + 2] {
    case UInt8(ascii: "s"): self = .softInterrupt
    case UInt8(ascii: "h"), UInt8(ascii: "H"), UInt8(ascii: "z"), UInt8(ascii: "Z"): self = .hardInterrupt
    default: self = .thread
    }
  }
}

extension UInt8 {
  /// Whether it may stand among the flags of a line.
  fileprivate var isFlag: Bool {
    self == UInt8(ascii: ".") || self == UInt8(ascii: "#") || (self | 0x20 >= 0x61 && self | 0x20 <= 0x7a)
      || (self >= 0x30 && self <= 0x39)
  }
}

extension Text {
  /// Removes what the kernel's log has in front: `<4>[  125.110021][   T12] `, with or without a syslog's own
  /// beginning. Answers whether it was there.
  fileprivate mutating func skipLogPrefix() -> Bool {
    if isLogTime { return skipLogTime() }
    // Mar  1 10:00:00 host kernel: [  125.110021] …
    var rest = self
    for _ in 0..<6 {
      guard let word = rest.popWord() else { return false }
      guard word == "kernel:" else { continue }
      self = rest.trimmed
      _ = skipLogTime()
      return true
    }
    return false
  }

  private var isLogTime: Bool {
    first == UInt8(ascii: "[") || first == UInt8(ascii: "<")
  }

  private mutating func skipLogTime() -> Bool {
    var rest = self
    if rest.first == UInt8(ascii: "<"), let close = rest.first(">"), rest[startIndex..<close].count < 5 {
      rest = rest[(close + 1)...]
    }
    guard rest.first == UInt8(ascii: "["), let close = rest.first("]") else { return false }
    let time = rest[(rest.startIndex + 1)..<close].trimmed
    guard let dot = time.first("."), time[..<dot].decimal != nil, time[(dot + 1)...].decimal != nil else {
      return false
    }
    rest = rest[(close + 1)...]
    if rest.first == UInt8(ascii: "["), let close = rest.first("]") {
      let caller = rest[(rest.startIndex + 1)..<close].trimmed
      if caller.starts(with: "T") || caller.starts(with: "C") { rest = rest[(close + 1)...] }
    }
    self = rest.trimmed
    return true
  }
}
