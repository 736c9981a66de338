// The banner: a line for each layer, with the memory that it found and allocated, and the command that shows more.

import CPlatform
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Vmem
import Workloads

extension Shell {
  /// Prints the lines under the first, which the kernel printed before memory was up.
  func banner() {
    let boot = subject.pointee.boot
    var usable: UInt64 = 0
    var usableBytes: UInt64 = 0
    for i in 0..<Int(boot.pointee.range_count) where cp_boot_ranges(boot)[i].type == 1 {
      usable += 1
      usableBytes = usableBytes &+ cp_boot_ranges(boot)[i].length
    }
    layer(
      "memory map",
      "\(count: UInt64(boot.pointee.range_count), "range"), \(count: usable) of them usable: \(ByteCount(usableBytes))",
      "memmap")
    let carveOut = memory.carveOut.pages
    if carveOut > .zero { layer("RAM disk", "\(carveOut.bytes), cut off the top of memory", "sysctl swap") }
    let tables = memory.pageTables
    var largest = TableLevel.pages
    if tables.leafCount(.mebibytes2) > .zero { largest = .mebibytes2 }
    if tables.leafCount(.gibibytes) > .zero { largest = .gibibytes }
    let proven: StaticString = tables.proveWriteXorExecute() == nil ? "W^X proven" : "W^X BROKEN"
    layer(
      "page tables",
      "\(count: tables.tableCount.rawValue, "table"), leaves up to \(largest.span.bytes); \(proven)",
      "pagetable")
    layer(
      "frames",
      "\(count: physical.total.rawValue, "frame"), records of 32 bytes in \(physical.recordsRun.count.bytes)",
      "frames")
    var order = 18
    while order > 0 && blocks(UInt8(order)) == 0 { order -= 1 }
    layer(
      "buddy",
      "\(count: physical.freeCount.rawValue) frames free, largest block \(BlockOrder(UInt8(order)).frames.bytes)",
      "buddy")
    var (arenas, importing) = (UInt64(0), UInt64(0))
    memory.space.tags.forEachArena {
      arenas += 1
      if $0.hasSource { importing += 1 }
    }
    let kernel = memory.space.kernelArena
    layer(
      "address space",
      "\(kernel.name) of \(ByteCount(kernel.size(.total).rawValue)), \(count: importing) of \(count: arenas) arenas import from it",
      "vmem")
    var (caches, slabs) = (UInt64(0), UInt64(0))
    memory.kmem.forEachCache {
      caches += 1
      slabs += $0.slabs
    }
    layer("kmem", "\(count: caches, "cache"), \(count: slabs, "slab")", "kmem")
    let swap = memory.paging.swap.figures
    if let device = memory.paging.swap.device {
      let used: Line = swap.used == .zero ? "none" : "\(swap.used.bytes)"
      layer("paging", "swap of \(swap.total.bytes) on \(device.name), \(used) used", "swap")
    } else {
      layer("paging", "no swap device: dirty pages stay in memory", "swap")
    }
    if boot.pointee.module_count > 0 {
      layer("boot module", describeModule(cp_boot_modules(boot)[0]), "replay")
    }
    newline()
    printMemoryUse()
  }

  /// Prints the strip of all memory, and the shares of Strata and of the boot module.
  private func printMemoryUse() {
    let end = UInt64(memory.map.end.rawValue)
    var perCell: UInt64 = 1
    while perCell * 64 < end { perCell *= 2 }
    strip("  0", cells(0, framesPerCell: perCell), "\(PageCount(perCell * 64).bytes)")
    let module = physical.count(.bootModule)
    let taken = physical.total - physical.freeCount - module
    var line: Line = "  Strata took \(taken.bytes) ("
    line.append(share: taken.rawValue, of: physical.total.rawValue)
    line.append(")")
    if module > .zero { line.append(line: ", the boot module \(module.bytes)") }
    line.append(line: "; \(physical.freeCount.bytes) is free.")
    print(line)
  }

  /// Prints a line of the banner: subject, figures, and the command for more.
  private func layer(_ name: StaticString, _ text: Line, _ command: StaticString) {
    var line: Line = "  \(name)"
    line.append(blanks: 17 - line.count)
    line.append(line: text)
    if line.count > 67 { line.truncate(to: 67) }
    line.append(blanks: 69 - line.count)
    line.append(command)
    print(line)
  }

  private func blocks(_ order: UInt8) -> UInt64 {
    var sum: UInt64 = 0
    for list in 0..<RangeList.count {
      if let list = RangeList(rawValue: UInt8(list)) {
        sum += physical.blocks(in: list, of: BlockOrder(order))
      }
    }
    return sum
  }

  private func describeModule(_ module: cp_boot_module) -> Line {
    let start = memory.machine.directMap.pointer(to: PhysicalAddress(module.base))
    let bytes = UnsafeRawBufferPointer(
      start: module.length == 0 ? nil : UnsafeRawPointer(start), count: Int(module.length))
    do throws(TraceError) {
      let trace = try PackedTrace(bytes)
      return "packed trace, \(count: UInt64(trace.counts.events), "event"), \(ByteCount(module.length))"
    } catch {
      return "\(ByteCount(module.length)); no packed trace"
    }
  }
}
