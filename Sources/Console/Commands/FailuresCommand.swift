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
    if log.count == 0 {
      print("No request has been refused since boot.")
      return
    }
    let table = failureTable()
    var (kept, granted) = (UInt64(0), UInt64(0))
    log.forEach { request in
      kept += 1
      if request.wasGranted { granted += 1 }
      table.begin()
      add(request, to: table)
      table.end()
    }
    table.finish()
    print(
      "\(count: kept) of \(count: log.count) are kept, \(UInt64(FailureLog.capacity)) at most: \(count: kept - granted) failed, \(count: granted) granted after moving or writing."
    )
  }

  /// A person reads a request and its answer in words, a tool in fields.
  private func failureTable() -> Table {
    let table = table("failure")
    table.column("no", .figure)
    table.column("tick", .figure)
    table.column("by", .text, key: "requester")
    table.column("asked", .folded, for: .people)
    table.column("answer", .folded, for: .people)
    table.column("free then", .figure, for: .people)
    table.column("asked", .text, for: .tools)
    table.column("bytes", .figure, for: .tools)
    table.column("alignment", .figure, for: .tools)
    table.column("boundary", .figure, for: .tools)
    table.column("low", .exact, for: .tools)
    table.column("high", .exact, for: .tools)
    table.column("priority", .text, for: .tools)
    table.column("granted", .text, for: .tools)
    table.column("answer", .text, for: .tools)
    table.column("blocker", .figure, for: .tools)
    table.column("moved", .figure, for: .tools)
    table.column("written", .figure, for: .tools)
    table.column("bytes free", .figure, for: .tools)
    table.column("bytes reserved", .figure, for: .tools)
    table.column("bytes awaited", .figure, for: .tools)
    table.column("site", .text, for: .tools)
    return table
  }

  private func add(_ request: RefusedRequest, to table: Table) {
    table.count(request.number)
    table.count(request.tick.rawValue)
    table.text(request.requester)
    table.text(asked(request))
    table.text(answer(request))
    table.size(request.free.bytes)
    table.text(request.kind.description)
    table.size(request.bytes)
    table.size(request.alignment)
    table.size(request.boundary)
    table.address(request.low)
    if request.high.rawValue < .max { table.address(request.high) } else { table.none() }
    table.text(request.priority.description)
    table.truth(request.wasGranted ? .yes : .no)
    table.text(request.wasGranted ? "yes" : request.reason)
    if request.blocker == .none { table.none() } else { table.plain(UInt64(request.blocker.rawValue)) }
    table.count(request.moved.rawValue)
    table.count(request.written.rawValue)
    table.size(request.free.bytes)
    table.size(request.reserved.bytes)
    table.size(request.awaited.bytes)
    table.text(place(request.site))
  }

  /// Describes a request: a run by its size and constraints, any other by its kind and size.
  private func asked(_ request: RefusedRequest) -> Line {
    var asked: Line =
      request.kind == .run ? "\(request.bytes)" : "\(request.kind.description) of \(request.bytes)"
    if request.low.rawValue > 0 { asked.append(line: " low \(limit(request.low))") }
    if request.high.rawValue < .max { asked.append(line: " high \(limit(request.high))") }
    if request.alignment > .zero { asked.append(line: " align \(request.alignment)") }
    if request.boundary > .zero { asked.append(line: " boundary \(request.boundary)") }
    if request.priority != .normal { asked.append(line: ", \(request.priority.description)") }
    return asked
  }

  /// A limit of a run: a size where that says all of it, else an address.
  private func limit(_ address: PhysicalAddress) -> Line {
    let bits = address.rawValue.trailingZeroBitCount / 10 * 10
    return address.rawValue >> UInt64(min(bits, 40)) < 1000 ? "\(ByteCount(address.rawValue))" : "\(address)"
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
