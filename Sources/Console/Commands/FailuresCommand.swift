// failures: the last requests that were refused, or granted only after pages were moved or written.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension CommandDescription {
  static var failures: CommandDescription {
    CommandDescription(
      name: "failures", usage: "failures",
      about: """
        The last 64 requests that were refused, or granted only after pages were
        moved or written: by which requester, at which tick, and the memory that
        was free then. Above 1 MiB: so much was reserved from that priority.
        Awaited: threads waited for so much.
        """,
      example: "failures", question: .failure,
      arguments: .none)
  }
}

extension Shell {
  func failures() throws(CommandError) {
    let log = memory.failures
    if isJSON {
      log.forEach { report($0) }
      return
    }
    if log.count == 0 {
      print("No request has been refused since boot.")
      return
    }
    let table = table("failure")
    table.column("no", .figure)
    table.column("tick", .figure)
    table.column("by", .text, key: "requester")
    table.column("asked", .text)
    table.column("answer", .text)
    table.column("free then", .figure)
    var (kept, granted) = (UInt64(0), UInt64(0))
    log.forEach { request in
      kept += 1
      if request.wasGranted { granted += 1 }
      table.begin()
      table.count(request.number)
      table.count(request.tick.rawValue)
      table.text(request.requester)
      table.text(asked(request))
      table.text(answer(request))
      table.size(request.free.bytes)
      table.end()
    }
    table.finish()
    print(
      "\(count: kept) of \(count: log.count) are kept, \(UInt64(FailureLog.capacity)) at most: \(count: kept - granted) failed, \(count: granted) granted after moving or writing."
    )
  }

  private func report(_ request: RefusedRequest) {
    row("failure") { row in
      row.field("no", request.number)
      row.field("tick", request.tick.rawValue)
      row.field("requester", text: "\(request.requester)")
      row.field("asked", text: Line(request.kind.description))
      row.field("bytes", request.bytes.rawValue)
      row.field("alignment", request.alignment.rawValue)
      row.field("boundary", request.boundary.rawValue)
      row.field("low", request.low)
      if request.high.rawValue < .max { row.field("high", request.high) } else { row.none("high") }
      row.field("priority", text: Line(request.priority.description))
      row.field("granted", truth: request.wasGranted ? .yes : .no)
      row.field("answer", text: request.wasGranted ? "yes" : Line(request.reason))
      if request.blocker == .none {
        row.none("blocker")
      } else {
        row.field("blocker", UInt64(request.blocker.rawValue))
      }
      row.field("moved", request.moved.rawValue)
      row.field("written", request.written.rawValue)
      row.field("bytes_free", request.free.bytes.rawValue)
      row.field("bytes_reserved", request.reserved.bytes.rawValue)
      row.field("bytes_awaited", request.awaited.bytes.rawValue)
      row.field("site", text: place(request.site))
    }
  }

  /// Describes a request: a run by its size and constraints, any other by its kind and size.
  private func asked(_ request: RefusedRequest) -> Line {
    var asked: Line =
      request.kind == .run ? "\(request.bytes)" : "\(request.kind.description) of \(request.bytes)"
    if request.low.rawValue > 0 { asked.append(line: " low \(ByteCount(request.low.rawValue))") }
    if request.high.rawValue < .max { asked.append(line: " high \(ByteCount(request.high.rawValue))") }
    if request.alignment > .zero { asked.append(line: " align \(request.alignment)") }
    if request.boundary > .zero { asked.append(line: " boundary \(request.boundary)") }
    if request.priority != .normal { asked.append(line: ", \(request.priority.description)") }
    return asked
  }

  private func answer(_ request: RefusedRequest) -> Line {
    var answer = Line(request.reason)
    if request.wasGranted { answer = "yes" }
    if let why = whyNever(request) { answer = "never: \(why)" }
    if isForWantOfMemory(request) {
      if request.reserved > .zero { answer.append(line: " above \(request.reserved.bytes)") }
      if request.awaited > .zero { answer.append(line: ", \(request.awaited.bytes) awaited") }
    }
    if request.blocker != .none { answer.append(line: ", frame \(request.blocker)") }
    if request.moved > .zero { answer.append(line: ", moved \(count: request.moved.rawValue)") }
    if request.written > .zero { answer.append(line: ", wrote \(count: request.written.rawValue)") }
    return answer
  }
}

extension Shell {
  /// Whether a request was refused although memory could have had it: the reserve and the waiters say more then.
  private func isForWantOfMemory(_ request: RefusedRequest) -> Bool {
    let reason = Bytes(start: request.reason.utf8Start, count: request.reason.utf8CodeUnitCount)
    return !request.wasGranted && (reason == "shortage" || reason == "no memory")
  }

  /// The reason why a run can never be allocated, in a few words; nil for any other answer.
  private func whyNever(_ request: RefusedRequest) -> StaticString? {
    let reason = Bytes(start: request.reason.utf8Start, count: request.reason.utf8CodeUnitCount)
    guard request.kind == .run, !request.wasGranted, reason.count >= 5,
      Bytes(rebasing: reason[0..<5]) == "never"
    else { return nil }
    let bytes = request.bytes.rawValue
    if request.boundary > .zero && request.boundary.rawValue < bytes { return "past its boundary" }
    let (low, high) = (request.low.rawValue, request.high.rawValue)
    if low >= high || high - low < bytes { return "low to high is less" }
    return bytes > physical.total.bytes.rawValue ? "more than all memory" : "nowhere fits"
  }
}

extension AllocationPriority {
  var description: StaticString {
    switch self {
    case .normal: "normal"
    case .system: "system"
    case .interrupt: "interrupt"
    }
  }
}
