// swap: the device behind anonymous memory, and the pages written to it and read back.

import KernelMemory
import MemoryPrimitives
import Paging

extension CommandDescription {
  static var swap: CommandDescription {
    CommandDescription(
      name: "swap", usage: "swap",
      about: "The swap device: slots used, free and bad, what was written and read.",
      example: "swap", question: .failure,
      arguments: .none)
  }
}

extension Shell {
  func swap() throws(CommandError) {
    let figures = memory.paging.swap.figures
    let device = memory.paging.swap.device
    let table = table("swap")
    table.column("tier", .text)
    table.column("size", .figure, key: "bytes")
    table.column("pages", .figure)
    table.column("held", .figure, key: "bytes_held")
    table.column("free", .figure, key: "bytes_free")
    table.column("bad slots", .figure)
    table.column("slots", .figure, for: .tools)
    table.column("free slots", .figure, for: .tools)
    table.column("pages written", .figure, for: .tools)
    table.column("pages read", .figure, for: .tools)
    table.column("clusters", .figure, for: .tools)
    table.column("failed requests", .figure, for: .tools)
    table.column("corrupt pages", .figure, for: .tools)
    table.begin()
    if let device { table.text("\(device.name)") } else { table.none() }
    table.size(figures.total.bytes)
    table.count(figures.used.rawValue)
    table.size(figures.used.bytes)
    table.size(figures.free.bytes)
    table.count(figures.bad.rawValue)
    table.count(figures.total.rawValue)
    table.count(figures.free.rawValue)
    table.count(figures.writes)
    table.count(figures.reads)
    table.count(figures.clusters)
    table.count(figures.failures)
    table.count(figures.corrupt)
    table.end()
    if device == nil {
      print("There is no swap device: a dirty page stays in memory until its object is destroyed.")
      print("Boot by make run SWAP=64M, or with swap.ramdisk=64M on the kernel's line.")
      return
    }
    table.finish()
    print(
      "Since boot: \(count: figures.writes, "page") written (\(count: figures.clusters, "request") of several pages), \(count: figures.reads) read."
    )
    if figures.failures > 0 || figures.corrupt > 0 {
      print(
        "! \(count: figures.failures, "request") failed, \(count: figures.corrupt, "page") came back corrupt. Type: sysctl vm.swap"
      )
    }
    if figures.free == .zero {
      print("! Swap is full: dirty pages must stay in memory. Type: queues")
    }
  }
}
