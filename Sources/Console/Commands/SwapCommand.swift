// swap: the device behind anonymous memory, and the pages written to it and read back.

import KernelMemory
import MemoryPrimitives
import Paging

extension Shell {
  func swap() throws(CommandError) {
    let figures = memory.paging.swap.figures
    guard let device = memory.paging.swap.device else {
      row("swap") { row in
        row.none("tier")
        row.field("slots", 0)
      }
      if !isJSON {
        print("There is no swap device: a dirty page stays in memory until its object is destroyed.")
        print("Boot by make run SWAP=64M, or with swap.ramdisk=64M on the kernel's line.")
      }
      return
    }
    if isJSON {
      row("swap") { row in
        row.field("tier", text: "\(device.name)")
        row.field("slots", figures.total.rawValue)
        row.field("pages", figures.used.rawValue)
        row.field("free_slots", figures.free.rawValue)
        row.field("bad_slots", figures.bad.rawValue)
        row.field("bytes", figures.total.bytes.rawValue)
        row.field("bytes_held", figures.used.bytes.rawValue)
        row.field("bytes_free", figures.free.bytes.rawValue)
        row.field("pages_written", figures.writes)
        row.field("pages_read", figures.reads)
        row.field("clusters", figures.clusters)
        row.field("failed_requests", figures.failures)
        row.field("corrupt_pages", figures.corrupt)
      }
      return
    }
    let table = table("swap")
    table.column("tier", .text)
    table.column("size", .figure)
    table.column("pages", .figure)
    table.column("held", .figure)
    table.column("free", .figure)
    table.column("bad slots", .figure)
    table.begin()
    table.text("\(device.name)")
    table.size(figures.total.bytes)
    table.count(figures.used.rawValue)
    table.size(figures.used.bytes)
    table.size(figures.free.bytes)
    table.count(figures.bad.rawValue)
    table.end()
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
