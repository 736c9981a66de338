// kmem: the object caches.

import Kmem
import KernelSpace
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension CommandDescription {
  static var kmem: CommandDescription {
    CommandDescription(
      name: "kmem", usage: "kmem [-a]",
      about: """
        Object caches: objects in use and free, slabs, bytes held, the share of
        them that is live, requests and failures.
        """,
      example: "kmem -a", question: .use,
      arguments: .none)
  }
}

extension Shell {
  func kmem() throws(CommandError) {
    let table = table("cache", .largestFirst)
    table.column("cache", .text)
    table.column("size", .figure)
    table.column("in use", .sum)
    table.column("free", .sum)
    table.column("slabs", .sum)
    table.column("held", .sum, key: "bytes")
    table.column("live", .ratio)
    table.column("requests", .sum)
    table.column("failed", .sum)
    table.column("source", .text, for: .tools)
    var caches: UInt64 = 0
    memory.kmem.forEachCache { cache in
      guard cache.slabs > 0 || cache.requests > 0 || showsEverything else { return }
      caches += 1
      table.begin(weight: cache.held.rawValue + 1)
      table.text(cache.name)
      table.plain(cache.objectSize.rawValue)
      table.count(cache.inUse)
      table.count(cache.free)
      table.count(cache.slabs)
      table.size(cache.held)
      table.share(cache.inUse * cache.objectSize.rawValue, of: cache.held.rawValue)
      table.count(cache.requests)
      table.count(cache.failed)
      table.text(cache.isContiguous ? "contiguous" : "direct map")
      table.end()
    }
    table.finish(total: "\(count: caches, "cache")")
    let large = memory.space.pages(.heap) + memory.space.pages(.interrupt)
    report("large") { report in
      report.write(
        "Beside the caches: \(key: "bytes", size: large.bytes) in whole pages.\(key: "frames", only: large.rawValue) kmem's own tables: \(memory.kmem.metadataBytes)."
      )
    }
  }
}
