// bench fault, fault-blocks, scan: the cost of pages when they are first touched, and when memory is full.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

/// The cost of touching each page of an object, and the part of it that zeroing takes.
private struct Touching {
  var faults: UInt64 = 0
  var zeroing: UInt64 = 0

  /// Each fault beyond the zeroing.
  func beyond(_ pages: UInt64) -> UInt64 { (faults &- min(faults, zeroing)) / pages }
}

extension KernelBenches {
  /// Faults that a page of zeroes answers, less the zeroing: in four objects that are too small for a block of 2 MiB.
  func measureFault() {
    guard let touching = smallFaults("fault") else { return }
    host.measured(.fault, touching.beyond(1024))
    host.measured(.faultZeroing, touching.zeroing / 1024)
  }

  /// Touching 64 MiB that may be entered in whole blocks, against as many faults of 4 KiB.
  func measureBlocks() {
    let name: StaticString = "fault-blocks"
    let pages: UInt64 = 64 << 8
    guard let small = smallFaults(name), let large = touch(PageCount(pages), name) else { return }
    let (each, all) = (small.beyond(1024), large.beyond(1))
    host.measured(.faultBlocks, each == 0 ? 0 : all * 1000 / (each * pages))
  }

  private func smallFaults(_ name: StaticString) -> Touching? {
    var sum = Touching()
    for _ in 0..<4 {
      guard let part = touch(PageCount(UInt64(256)), name) else { return nil }
      sum.faults &+= part.faults
      sum.zeroing &+= part.zeroing
    }
    return sum
  }

  /// Makes an object of `count` pages, stores to each page and destroys the object. Nil when the bench is left out.
  private func touch(_ count: PageCount, _ name: StaticString) -> Touching? {
    // The page daemon must not run during the measurement.
    guard physical.freeCount > memory.paging.freeTarget + count + count else {
      host.leftOut(name, "it takes \(count.bytes) free beyond the daemon's target")
      return nil
    }
    let paging = memory.paging
    do throws(PagingError) {
      let object = try paging.createObject(ShortName("bench"), count)
      defer { paging.destroy(object) }
      let address = try paging.map(object, count: count)
      defer { paging.unmap(address, count) }
      let start = cp_cycles()
      for page in 0..<count.rawValue { try access.store(address + PageCount(page), page) }
      let faults = cp_cycles() &- start
      return Touching(faults: faults, zeroing: zeroCycles(address, count))
    } catch {
      host.leftOut(name, "a page could not be brought in: \(error.description)")
      return nil
    }
  }

  /// The cost of zeroing the frames behind these pages.
  private func zeroCycles(_ address: VirtualAddress, _ count: PageCount) -> UInt64 {
    var sum: UInt64 = 0
    for page in 0..<count.rawValue {
      guard let place = memory.pageTables.translate(address + PageCount(page)) else { continue }
      let frame = memory.machine.directMap.pointer(to: place.physical)
      let start = cp_cycles()
      zero(frame)
      sum &+= cp_cycles() &- start
    }
    return sum
  }
  @inline(never) private func zero(_ page: UnsafeMutableRawPointer) {
    page.initializeMemory(as: UInt64.self, repeating: 0, count: 512)
  }

  /// Half as many dirty pages again as there is memory: pages that the page daemon looks at for each that it reclaims.
  func measureScan() throws(FillFailure) {
    let count = DirtyPages.share(150, of: physical)
    guard memory.paging.swap.figures.free >= count else {
      return host.leftOut("scan", "it takes a swap device with \(count.bytes) free; boot with SWAP=")
    }
    let before = memory.paging.figures
    let fill = try fill(count)
    let after = memory.paging.figures
    verifyAndRelease(fill)
    if isStopped { return }
    let reclaimed = after.cached - before.cached
    guard reclaimed > 0 else { return host.leftOut("scan", "the page daemon reclaimed nothing") }
    host.measured(.daemonScanned, (after.scanned - before.scanned) * 1000 / reclaimed)
  }
}
