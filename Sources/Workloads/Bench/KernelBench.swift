// The benches of a whole running system, in the order in which they run.
//
// A bench puts the machine into the state that its goal names, measures, and frees all memory that it has allocated.
// A bench for which the machine is too small is left out, with the reason. In the kernel the cycle counter counts
// instructions under QEMU's -icount; a process measures the same rows in cycles, which are compared with no goal.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

/// A bench by its name.
package enum KernelBench: UInt8, Sendable {
  case contig, contigOne, contigLow, contigBusy
  case kmem, pages, pageblocks, wired, vmem
  case zs, fault, blocks, scan, windows, threadSwitch, shootdown, longest, boot

  package static var last: Self { .boot }

  package var name: StaticString {
    switch self {
    case .contig: "contig"
    case .contigOne: "contig-one"
    case .contigLow: "contig-low"
    case .contigBusy: "contig-busy"
    case .kmem: "kmem"
    case .pages: "pages"
    case .pageblocks: "pageblocks"
    case .wired: "wired"
    case .vmem: "vmem"
    case .zs: "zs"
    case .fault: "fault"
    case .blocks: "fault-blocks"
    case .scan: "scan"
    case .windows: "windows"
    case .threadSwitch: "switch"
    case .shootdown: "shootdown"
    case .longest: "longest-off"
    case .boot: "boot"
    }
  }
}

/// The benches on one system, for one host.
package struct KernelBenches<Host: BenchHost> {
  let memory: MemorySystem
  let access: WordAccess
  /// A packed trace to replay.
  let trace: UnsafeRawBufferPointer?
  let host: Host

  package init(_ memory: MemorySystem, _ access: WordAccess, trace: UnsafeRawBufferPointer?, for host: Host) {
    self.memory = memory
    self.access = access
    self.trace = trace
    self.host = host
  }

  var physical: FrameAllocator { memory.physical }
  var isStopped: Bool { host.pace == .stop }

  /// Runs one bench, or every one but that of the boot, whose cost can be measured only right after it. Throws when
  /// pages that should have fitted did not.
  package func measure(_ only: KernelBench?) throws(FillFailure) {
    for value in 0...KernelBench.last.rawValue {
      guard let bench = KernelBench(rawValue: value), only == nil ? bench != .boot : only == bench else {
        continue
      }
      if isStopped { return }
      try run(bench)
    }
  }

  private func run(_ bench: KernelBench) throws(FillFailure) {
    switch bench {
    case .contig: try measureContig()
    case .contigOne: try measureContigOne()
    case .contigLow: try measureContigLow()
    case .contigBusy: try measureContigBusy()
    case .kmem: measureKmem()
    case .pages: measurePages()
    case .pageblocks: measurePageblocks()
    case .wired: measureWired()
    case .vmem: measureVmem()
    case .zs: measureZs()
    case .fault: measureFault()
    case .blocks: measureBlocks()
    case .scan: try measureScan()
    case .windows: measureWindows()
    case .threadSwitch: measureSwitch()
    case .shootdown: measureShootdown()
    case .longest: measureLongest()
    case .boot: measureBoot()
    }
  }

  /// Fills new pages, and shows how far it is.
  func fill(_ count: PageCount) throws(FillFailure) -> DirtyPages {
    try DirtyPages.fill(count, seed: host.seed, on: memory, access) {
      host.progress("dirty", $0, of: count.rawValue, "pages")
    }
  }

  /// Verifies all pages, unless stopped by then, and frees them.
  func verifyAndRelease(_ fill: DirtyPages) {
    var verdict = DirtyPages.Verdict()
    if !isStopped {
      verdict = fill.verify(access) { host.progress("verify", $0, of: fill.filled.rawValue, "pages") }
    }
    fill.release(memory)
    host.verified(verdict)
  }

  func statistic(_ name: StaticString) -> UInt64? { memory.statistics.value(of: name) }
}
