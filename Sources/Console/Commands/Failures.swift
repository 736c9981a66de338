// failures: the last requests that were refused.

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
    table.column("level", .words)
    table.column("answer", .words)
    table.column("free then", .figure, key: "bytes_free")
    table.column("", .words, key: "site")
    log.forEach { request in
      table.begin()
      table.count(request.number)
      table.count(request.tick.rawValue)
      table.text(request.who)
      var asked: Line = "\(request.kind.words) of \(request.bytes)"
      if request.alignment > .zero { asked.append(line: " align \(request.alignment)") }
      if request.boundary > .zero { asked.append(line: " boundary \(request.boundary)") }
      table.text(asked)
      switch request.level {
      case .normal: table.text("normal")
      case .system: table.text("system")
      case .interrupt: table.text("interrupt")
      }
      table.text(request.reason)
      table.size(request.free.bytes)
      table.text(isJSON ? place(request.site) : Line())
      table.end()
    }
    table.finish()
    if isJSON { return }
    let kept = min(log.count, UInt64(FailureLog.capacity))
    print("\(count: kept) kept of \(count: log.count) refused since boot; the latest stands first.")
  }
}
