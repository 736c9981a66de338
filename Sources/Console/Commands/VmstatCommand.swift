// vmstat: memory by type and caches, in the columns of vmstat(8).

import Kmem
import KernelSpace
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension CommandDescription {
  static var vmstat: CommandDescription {
    CommandDescription(
      name: "vmstat", usage: "vmstat -m | -z",
      about: """
        What vmstat(8) prints: -m memory by type, -z caches. Columns, order and
        units are those that scripts know.
        """,
      example: "vmstat -m", question: .use, entry: "vmstat -m|-z",
      completion: .words("-m -z"))
  }
}

extension Shell {
  /// The columns, order and units of vmstat(8), for scripts that know them.
  func vmstat(_ arguments: Arguments) throws(CommandError) {
    let byType = arguments.takeFlag("-m")
    let byCache = arguments.takeFlag("-z")
    try arguments.end()
    guard byType != byCache else { throw refuse("vmstat -m shows memory by type, vmstat -z caches.") }
    if byType { types() } else { zones() }
  }

  private func types() {
    print("         Type InUse MemUse HighUse Requests  Size(s)")
    memory.kmem.forEachTypeToken { type in
      let figures = memory.kmem.describe(type)
      guard figures.requests > 0 || showsEverything else { return }
      var sizes = Line()
      memory.kmem.forEachSize(of: type) { size, _, _ in
        if sizes.count > 0 { sizes.append(",") }
        if let size { sizes.append(decimal: size.rawValue) } else { sizes.append("large") }
      }
      row("type") { row in
        row.field("type", text: "\(figures.name)")
        row.field("in_use", figures.inUse)
        row.field("bytes", figures.bytes.rawValue)
        row.field("requests", figures.requests)
        row.field("failed", figures.failed)
        row.field("sizes", text: sizes)
      }
      let used: Line = "\((figures.bytes.rawValue + 1023) / 1024)K"
      var line: Line = "\(right: "\(figures.name)", 13) \(right: "\(figures.inUse)", 5) \(right: used, 6)"
      line.append(line: " \(right: "-", 7) \(right: "\(figures.requests)", 8)  ")
      // As many sizes as fit the line; -j prints all of them.
      var shown = sizes
      if line.count + shown.count > width {
        shown.truncate(to: width - line.count - 3)
        while shown.count > 0 && shown[shown.count - 1] != UInt8(ascii: ",") {
          shown.truncate(to: shown.count - 1)
        }
        shown.append("...")
      }
      line.append(line: shown)
      print(line)
    }
  }

  private func zones() {
    print("ITEM                   SIZE  LIMIT     USED     FREE      REQ     FAIL SLEEP")
    memory.kmem.forEachCache { cache in
      guard cache.requests > 0 || cache.slabs > 0 || showsEverything else { return }
      row("zone") { row in
        row.field("item", text: "\(cache.name)")
        row.field("size", cache.objectSize.rawValue)
        row.field("limit", 0)
        row.field("used", cache.inUse)
        row.field("free", cache.free)
        row.field("requests", cache.requests)
        row.field("failed", cache.failed)
        row.field("sleeps", 0)
      }
      func figure(_ value: UInt64, _ width: Int) -> Line { "\(right: "\(value)", width)," }
      var name: Line = "\(cache.name)"
      name.truncate(to: 19)
      name.append(":")
      var line: Line = "\(left: name, 20)"
      line.append(line: figure(cache.objectSize.rawValue, 7))
      line.append(line: figure(0, 7))
      line.append(line: figure(cache.inUse, 8))
      line.append(line: figure(cache.free, 8))
      line.append(line: figure(cache.requests, 8))
      line.append(line: figure(cache.failed, 8))
      line.append("   0")
      print(line)
    }
  }
}
