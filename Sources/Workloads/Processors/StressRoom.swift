// Where a stress keeps what it must remember: one run of frames, reached by the direct map.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

/// The parts of that memory.
struct StressRoom {
  let run: FrameRun
  let state: UnsafeMutablePointer<ProcessorStress.State>
  let trouble: UnsafeMutablePointer<StressTrouble>
  let addresses: UnsafeMutableRawPointer
  let things: UnsafeMutableRawPointer
  let pages: UnsafeMutableRawPointer
  private let workers: UnsafeMutablePointer<StressWorker.Record>
  private let threads: UnsafeMutablePointer<ThreadHandle?>
  private let counters: UnsafeMutablePointer<Counter>
  private let seed: UInt64
  private let physical: FrameAllocator

  private static func rounded(_ size: Int) -> Int { (size + 63) & ~63 }
  /// A line of the cache for each counter.
  private static var counterStride: Int { 8 }

  init(_ plan: ProcessorStressPlan, _ memory: MemorySystem) throws(StressRefusal) {
    // One more, for whoever cleans up.
    let count = plan.workers + 1
    var size = Self.rounded(MemoryLayout<ProcessorStress.State>.size)
    size += Self.rounded(MemoryLayout<StressTrouble>.size) + Self.rounded(SharedAddresses.size)
    size += Self.rounded(ExchangedThings.size) + Self.rounded(SharedPages.size(plan.pages))
    size += Self.rounded(count * MemoryLayout<StressWorker.Record>.stride) + count * Self.counterStride * 8
    size += Self.rounded(count * MemoryLayout<ThreadHandle?>.stride)
    do throws(PhysicalMemoryError) {
      run = try memory.physical.allocate(run: ByteCount(size).pagesRoundedUp, role: .wired)
    } catch {
      throw .noMemory
    }
    var at = memory.machine.directMap.pointer(to: run.first)
    at.initializeMemory(as: UInt64.self, repeating: 0, count: Int(run.count.bytes.rawValue / 8))
    func place(_ size: Int) -> UnsafeMutableRawPointer {
      defer { at += Self.rounded(size) }
      return at
    }
    state = place(MemoryLayout<ProcessorStress.State>.size)
      .bindMemory(to: ProcessorStress.State.self, capacity: 1)
    trouble = place(MemoryLayout<StressTrouble>.size).bindMemory(to: StressTrouble.self, capacity: 1)
    addresses = place(SharedAddresses.size)
    things = place(ExchangedThings.size)
    workers = place(count * MemoryLayout<StressWorker.Record>.stride)
      .bindMemory(to: StressWorker.Record.self, capacity: count)
    threads = place(count * MemoryLayout<ThreadHandle?>.stride)
      .bindMemory(to: ThreadHandle?.self, capacity: count)
    threads.initialize(repeating: nil, count: count)
    counters = place(count * Self.counterStride * 8)
      .bindMemory(to: Counter.self, capacity: count * Self.counterStride)
    pages = place(SharedPages.size(plan.pages))
    seed = plan.seed
    physical = memory.physical
  }

  func giveBack() { physical.free(run) }

  func worker(_ number: Int) -> UnsafeMutablePointer<StressWorker.Record> { workers + number }
  func thread(_ number: Int) -> UnsafeMutablePointer<ThreadHandle?> { threads + number }
  func operations(_ number: Int) -> UnsafeMutablePointer<Counter> { counters + number * Self.counterStride }

  /// Makes the record of a worker.
  func prepare(_ number: Int, for stress: ProcessorStress) {
    operations(number).initialize(to: Counter())
    worker(number).initialize(
      to: StressWorker.Record(
        stress: stress, number: number, operations: operations(number),
        random: SeededRandom(seed: seed &+ UInt64(number) &* 0x2545_f491_4f6c_dd1d)))
  }
}
