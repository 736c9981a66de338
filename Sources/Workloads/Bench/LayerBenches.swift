// bench kmem, pages, pageblocks, wired, vmem, windows, boot: the costs of the layers below paging, and of a boot.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Vmem

extension KernelBenches {
  func measureKmem() {
    let bench = KmemPairBench(memory)
    host.measured(.kmemKernel16, bench.cyclesOf16)
    host.measured(.kmemKernel64, bench.cyclesOf64)
    host.measured(.kmemKernel1024, bench.cyclesOf1024)
    host.measured(.kmemKernel4096, bench.cyclesOf4096)
    host.measured(.kmemKernelVariable, bench.cyclesOfVariable)
    host.measured(.kmemKernelInterruptsOff, bench.cyclesWithInterruptsOff)
  }

  func measurePages() {
    let bench = PageBench(memory)
    let object = KmemPairBench(memory).cyclesOfVariable
    guard let pair = bench.cyclesOfPair(BlockOrder(0), 1000),
      let each = bench.cyclesOfSingles(rounds: 16, seed: 1)
    else { return host.leftOut("pages", "512 frames are not free") }
    host.measured(.pagePair, pair * 1000 / max(1, object))
    host.measured(.pagePairInstructions, pair)
    host.measured(.pageSingles, each)
  }

  func measurePageblocks() {
    let bench = PageBench(memory)
    if let cycles = bench.cyclesOfPageblockPair(100) {
      host.measured(.pageblockPair, cycles)
    } else {
      host.leftOut("pageblock-pair", "no block of 2 MiB is free")
    }
    if let cycles = bench.cyclesOfSplittingPair(100) {
      host.measured(.pageblockPairSplitting, cycles)
    } else {
      host.leftOut("pageblock-pair-splitting", "no block of 1 GiB is free")
    }
  }

  func measureVmem() {
    func measure(_ live: UInt64, _ kind: VmemBench.Kind, _ budget: Budget) {
      guard var bench = VmemBench(memory, live: live, seed: 1) else {
        return host.leftOut(budget.row.name, "its segments and tags take more memory")
      }
      if let cycles = bench.cyclesOfPair(kind, 2000) {
        host.measured(budget, cycles)
      } else {
        host.leftOut(budget.row.name, "a segment was refused")
      }
      bench.release()
    }
    measure(100, .plain, .vmemPair100)
    measure(1_000_000, .plain, .vmemPairMillion)
    measure(10_000, .aligned, .vmemAligned)
    measure(10_000, .windowed, .vmemWindowed)
  }

  func measureWindows() { host.measured(.windowPair, WindowBench(memory).cyclesOfPair) }

  /// Replays the trace while half of memory is dirtied and freed in turn.
  func measureWired() {
    let name: StaticString = "wired"
    guard let trace else { return host.leftOut(name, "there is no boot module to replay") }
    var half = HalfOfMemory(memory, access)
    do throws(ReplayError) {
      let replay = try Replay.prepare(trace, on: memory)
      try replay.run { _ in
        if isStopped { return .stop }
        half.advance()
        return .goOn
      }
      half.release()
      let figure = wiredPageblocks()
      _ = replay.close()
      if isStopped { return }
      guard half.wasDirtied else { return host.leftOut(name, "half of memory can't be dirtied") }
      host.measured(.wiredPageblocks, figure)
    } catch {
      half.release()
      host.leftOut(name, error.describe("the boot module"))
    }
  }

  /// The pageblocks that hold an unmovable page, in thousandths of the least that could hold as many.
  private func wiredPageblocks() -> UInt64 {
    var (blocks, unmovable): (UInt64, UInt64) = (0, 0)
    physical.forEachPageblock { block in
      unmovable += block.unmovable.rawValue
      if block.unmovable > .zero { blocks += 1 }
    }
    return blocks * 1000 / max(1, (unmovable + 511) / 512)
  }

  /// The instructions since the kernel was entered: measured by the first command after a boot.
  func measureBoot() {
    guard let cycles = statistic("machine.cycles") else {
      return host.leftOut("boot", "no counter runs since the kernel's entry")
    }
    let total = physical.total.bytes
    guard total <= .mebibytes(256) || total >= .gibibytes(19) else {
      return host.leftOut("boot", "it takes a machine of 256 MiB or of 20 GiB")
    }
    let isSmall = total <= .mebibytes(256)
    let own = memory.footprint.rawValue * 100_000 / total.rawValue
    host.measured(isSmall ? .bootSmall : .bootLarge, cycles)
    host.measured(isSmall ? .ownMemorySmall : .ownMemoryLarge, own)
  }
}
