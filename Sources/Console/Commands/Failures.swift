// failures: the last requests that did not go well: refused, or granted only after others had to move.

import KernelMemory
import MemoryPrimitives

extension Console {
  func failures() throws(CommandError) {
    let log = memory.failures
    if log.count == 0 {
      if !isJSON { print("No request has been refused since boot.") }
      return
    }
    let table = table("failure")
    table.column("no", .figure)
    table.column("tick", .figure)
    table.column("who", .words)
    table.column("asked", .words)
    table.column("answer", .words)
    table.column("free then", .figure, key: "bytes_free")
    if isJSON {
      table.column("level", .words)
      table.column("granted", .words)
      table.column("moved", .figure)
      table.column("written", .figure)
      table.column("site", .words)
    }
    var (kept, granted) = (UInt64(0), UInt64(0))
    log.forEach { request in
      kept += 1
      if request.wasGranted { granted += 1 }
      table.begin()
      table.count(request.number)
      table.count(request.tick.rawValue)
      table.text(request.who)
      table.text(asked(request))
      table.text(answer(request))
      table.size(request.free.bytes)
      if isJSON {
        table.text(request.level.words)
        table.text(request.wasGranted ? "yes" : "no")
        table.count(request.moved.rawValue)
        table.count(request.written.rawValue)
        table.text(place(request.site))
      }
      table.end()
    }
    table.finish()
    if isJSON { return }
    print(
      "\(count: kept) of \(count: log.count) kept: \(count: kept - granted) failed, \(count: granted) granted after moving or writing."
    )
  }

  /// What was asked for: a run by its size and constraints, anything else by its kind too.
  private func asked(_ request: RefusedRequest) -> Line {
    var asked: Line =
      request.kind == .run ? "\(request.bytes)" : "\(request.kind.words) of \(request.bytes)"
    if request.alignment > .zero { asked.append(line: " align \(request.alignment)") }
    if request.boundary > .zero { asked.append(line: " boundary \(request.boundary)") }
    if request.level != .normal { asked.append(line: ", \(request.level.words)") }
    return asked
  }

  private func answer(_ request: RefusedRequest) -> Line {
    var answer = Line(request.reason)
    if request.wasGranted { answer = "yes" }
    if request.moved > .zero { answer.append(line: ", moved \(count: request.moved.rawValue)") }
    if request.written > .zero { answer.append(line: ", wrote \(count: request.written.rawValue)") }
    return answer
  }
}

extension Level {
  var words: StaticString {
    switch self {
    case .normal: "normal"
    case .system: "system"
    case .interrupt: "interrupt"
    }
  }
}
