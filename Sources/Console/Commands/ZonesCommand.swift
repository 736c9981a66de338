// zones: caches that keep objects free for requests that must not fail.

import KernelMemory
import Kmem
import MemoryPrimitives

extension CommandDescription {
  static var zones: CommandDescription {
    CommandDescription(
      name: "zones", usage: "zones",
      about: """
        Caches that keep objects free for requests that must not fail when
        memory is gone: objects in use and free, how many are kept (demand),
        those registered before kmem existed, and the fewest ever free.
        """,
      example: "zones", question: .use,
      arguments: .none)
  }
}

extension Shell {
  func zones() throws(CommandError) {
    let table = table("reserve")
    table.column("zone", .text)
    table.column("in use", .figure)
    table.column("free", .figure)
    table.column("demand", .figure)
    table.column("ahead", .figure)
    table.column("registered", .figure)
    table.column("low water", .figure)
    table.column("limit", .figure)
    memory.kmem.forEachZone { zone in
      table.begin()
      table.text(zone.name)
      table.count(zone.inUse)
      table.count(zone.free)
      table.count(zone.demand)
      table.count(zone.free - min(zone.free, zone.demand))
      table.count(zone.registered)
      table.count(zone.lowWater)
      if let limit = zone.limit { table.count(limit) } else { table.none() }
      table.end()
    }
    table.finish()
  }
}
