// bench kmem, pages, pageblocks, wired, vmem, boot: the costs of the layers below paging, and of a boot.

import CPlatform
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory
import Vmem
import Workloads

extension Shell {
  // MARK: Objects

  private var benchAllocator: KmemBenchAllocator {
    KmemBenchAllocator(memory.kmem, memory.kmem.type(named: ShortName("bench")))
  }

  /// Cycles of a pair, measured over a thousand in a row. An interrupt falls into few of five rows at most, so the
  /// least counts.
  private func cyclesOfPair(_ body: (Int) -> Void) -> UInt64 {
    let count = 1000
    body(1)
    var least = UInt64.max
    for _ in 0..<5 {
      let start = cp_cycles()
      body(count)
      least = min(least, cp_cycles() &- start)
    }
    return least / UInt64(count)
  }

  /// The cost of the most expensive size, of sizes that the compiler does not know.
  private func cyclesOfVariablePair() -> UInt64 {
    let allocator = benchAllocator
    var most: UInt64 = 0
    for shift in 4...12 as ClosedRange<UInt64> {
      most = max(most, cyclesOfPair { ObjectBench.variablePairs(allocator, 1 << shift, $0) })
    }
    return most
  }

  func benchKmem(_ sheet: BenchSheet) {
    let allocator = benchAllocator
    // The compiler knows a size that is a literal in the source.
    sheet.add(.kmemKernel16, cyclesOfPair { ObjectBench.pairs(allocator, 16, $0) })
    sheet.add(.kmemKernel64, cyclesOfPair { ObjectBench.pairs(allocator, 64, $0) })
    sheet.add(.kmemKernel1024, cyclesOfPair { ObjectBench.pairs(allocator, 1024, $0) })
    sheet.add(.kmemKernel4096, cyclesOfPair { ObjectBench.pairs(allocator, 4096, $0) })
    sheet.add(.kmemKernelVariable, cyclesOfVariablePair())
    let interrupts = cp_interrupts_disable()
    let cycles = cyclesOfPair { ObjectBench.variablePairs(allocator, 4096, $0) }
    cp_interrupts_restore(interrupts)
    sheet.add(.kmemKernelInterruptsOff, cycles)
  }

  // MARK: Frames

  func benchPages(_ sheet: BenchSheet) {
    let bench = PageBench(memory)
    let object = cyclesOfVariablePair()
    guard let pair = bench.cyclesOfPair(BlockOrder(0), 1000),
      let each = bench.cyclesOfSingles(rounds: 16, seed: 1)
    else { return sheet.leaveOut("pages", "512 frames are not free") }
    sheet.add(.pagePair, pair * 1000 / max(1, object))
    sheet.add(.pagePairInstructions, pair)
    sheet.add(.pageSingles, each)
  }

  func benchPageblocks(_ sheet: BenchSheet) {
    let bench = PageBench(memory)
    if let cycles = bench.cyclesOfPageblockPair(100) {
      sheet.add(.pageblockPair, cycles)
    } else {
      sheet.leaveOut("pageblock-pair", "no block of 2 MiB is free")
    }
    if let cycles = bench.cyclesOfSplittingPair(100) {
      sheet.add(.pageblockPairSplitting, cycles)
    } else {
      sheet.leaveOut("pageblock-pair-splitting", "no block of 1 GiB is free")
    }
  }

  // MARK: Pageblocks with wired pages

  /// Replays the boot module while half of memory is dirtied and freed in turn. Counts the pageblocks that hold an
  /// unmovable page, against the least that could hold as many.
  func benchWired(_ sheet: BenchSheet) {
    let name: StaticString = "wired"
    guard let module else { return sheet.leaveOut(name, "there is no boot module to replay") }
    let replay: Replay
    do throws(ReplayError) {
      replay = try Replay.prepare(try packedTrace(module), on: memory)
    } catch {
      return sheet.leaveOut(name, error.describe("the boot module"))
    }
    var half = HalfOfMemory(memory, share(50), access)
    do throws(ReplayError) {
      try replay.run { _ in
        if shouldStop { return .stop }
        half.advance()
        return .goOn
      }
    } catch {
      half.release()
      return sheet.leaveOut(name, error.describe("the boot module"))
    }
    half.release()
    var (blocks, unmovable): (UInt64, UInt64) = (0, 0)
    physical.forEachPageblock { block in
      unmovable += block.unmovable.rawValue
      if block.unmovable > .zero { blocks += 1 }
    }
    _ = replay.close()
    if state.pointee.stopped { return }
    guard half.wasDirtied else { return sheet.leaveOut(name, "half of memory can't be dirtied") }
    sheet.add(.wiredPageblocks, blocks * 1000 / max(1, (unmovable + 511) / 512))
  }

  // MARK: Arenas

  func benchVmem(_ sheet: BenchSheet) {
    func measure(_ live: UInt64, _ kind: VmemBench.Kind, _ budget: Budget) {
      guard var bench = VmemBench(memory, live: live, seed: 1) else {
        return sheet.leaveOut(budget.row.name, "its segments and tags take more memory")
      }
      if let cycles = bench.cyclesOfPair(kind, 2000) {
        sheet.add(budget, cycles)
      } else {
        sheet.leaveOut(budget.row.name, "a segment was refused")
      }
      bench.release()
    }
    measure(100, .plain, .vmemPair100)
    measure(1_000_000, .plain, .vmemPairMillion)
    measure(10_000, .aligned, .vmemAligned)
    measure(10_000, .windowed, .vmemWindowed)
  }

  // MARK: The boot

  /// The instructions since the kernel was entered: measured by the first command after a boot.
  func benchBoot(_ sheet: BenchSheet) {
    guard let cycles = memory.statistics.value(of: "machine.cycles") else {
      return sheet.leaveOut("boot", "no counter runs since the kernel's entry")
    }
    let total = physical.total.bytes
    guard total <= .mebibytes(256) || total >= .gibibytes(19) else {
      return sheet.leaveOut("boot", "it takes a machine of 256 MiB or of 20 GiB")
    }
    let isSmall = total <= .mebibytes(256)
    let own = memory.footprint.rawValue * 100_000 / total.rawValue
    sheet.add(isSmall ? .bootSmall : .bootLarge, cycles)
    sheet.add(isSmall ? .ownMemorySmall : .ownMemoryLarge, own)
  }
}

/// Dirties half of memory an eighth at a time, then frees it as a whole, and dirties it again.
private struct HalfOfMemory {
  private let memory: MemorySystem
  private let count: PageCount
  private let access: WordAccess
  private var object: MemoryObject?
  private var address = VirtualAddress(0)
  private var done: UInt64 = 0
  /// Whether all of it has been dirty at some time, and no page was refused.
  private(set) var wasDirtied = false
  private var hasFailed = false

  init(_ memory: MemorySystem, _ count: PageCount, _ access: WordAccess) {
    self.memory = memory
    self.count = count
    self.access = access
  }

  mutating func advance() {
    guard !hasFailed else { return }
    if done == count.rawValue { return release() }
    do throws(PagingError) {
      if object == nil {
        let made = try memory.paging.createObject(ShortName("bench"), count)
        do throws(PagingError) {
          address = try memory.paging.map(made, count: count)
        } catch {
          memory.paging.destroy(made)
          throw error
        }
        object = made
      }
      let end = min(count.rawValue, done + (count.rawValue + 7) / 8)
      while done < end {
        try access.store(address + PageCount(done), done)
        done += 1
      }
      if done == count.rawValue { wasDirtied = true }
    } catch {
      hasFailed = true
      wasDirtied = false
    }
  }

  mutating func release() {
    if let object {
      memory.paging.unmap(address, count)
      memory.paging.destroy(object)
    }
    object = nil
    done = 0
  }
}
