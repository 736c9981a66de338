// selftest threads: when no frame is free, as many threads start as the machine keeps memory for, and one more is
// refused. The same once more, because the memory of threads that have ended is kept for the next.
//
// Frames are allocated at interrupt priority until none is left, each naming the one before in its first word. Other
// threads find memory gone until the test ends, and wait or are refused.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Synchronization

extension SelfTests {
  /// Frames beyond which the test would take too long.
  private static var frameLimit: PageCount { PageCount(UInt64(1 << 18)) }
  private static var owner: FrameOwner { FrameOwner("self-test, threads") }

  func testThreads() -> SelfTestOutcome {
    guard processors > 0 else { return .notBegun("no threads on this machine") }
    guard memory.physical.freeCount <= Self.frameLimit else { return .notBegun("more than 1 GiB is free") }
    do throws(PhysicalMemoryError) {
      let counter = try memory.physical.allocate(BlockOrder(0), role: .wired, for: Self.owner)
      defer { memory.physical.free(counter, BlockOrder(0)) }
      let runs = memory.machine.directMap.pointer(to: counter).bindMemory(
        to: Atomic<UInt64>.self, capacity: 1)
      runs.initialize(to: Atomic(0))
      for _ in 0..<2 {
        let last = exhaust()
        let flaw = startWithoutMemory(runs)
        free(from: last)
        if let flaw { return .broken(flaw) }
      }
      return SelfTestOutcome(memory.checkInvariants())
    } catch {
      return .notBegun("no frame is free")
    }
  }

  /// Starts threads until one is refused.
  private func startWithoutMemory(_ runs: UnsafeMutablePointer<Atomic<UInt64>>) -> StaticString? {
    let before = runs.pointee.load(ordering: .relaxed)
    var threads = InlineArray<8, ThreadHandle?>(repeating: nil)
    var started = 0
    while started < threads.count {
      threads[started] = memory.machine.start("selftest", .worker, runs) {
        $0.unsafelyUnwrapped.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.add(1, ordering: .relaxed)
      }
      if threads[started] == nil { break }
      started += 1
    }
    for index in 0..<started { if let thread = threads[index] { memory.machine.join(thread) } }
    if started < Machine.threadsWithoutMemory { return "too few threads start without a free frame" }
    if started == threads.count { return "no thread is refused without a free frame" }
    return runs.pointee.load(ordering: .relaxed) - before == UInt64(started) ? nil : "a thread did not run"
  }

  /// Allocates all frames, those that kmem keeps as well. Answers the last.
  private func exhaust() -> FrameNumber {
    var last = FrameNumber.none
    for _ in 0..<2 {
      do throws(PhysicalMemoryError) {
        while true {
          let frame = try memory.physical.allocate(
            BlockOrder(0), role: .wired, priority: .interrupt, for: Self.owner)
          memory.machine.directMap.pointer(to: frame).storeBytes(of: last.rawValue, as: UInt32.self)
          last = frame
        }
      } catch {
        memory.kmem.drain()
      }
    }
    return last
  }

  private func free(from last: FrameNumber) {
    var frame = last
    while frame != .none {
      let next = FrameNumber(memory.machine.directMap.pointer(to: frame).load(as: UInt32.self))
      memory.physical.free(frame, BlockOrder(0))
      frame = next
    }
  }
}
