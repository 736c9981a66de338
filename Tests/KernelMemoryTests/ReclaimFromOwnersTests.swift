import ContiguousMemory
import HostMachine
import KernelMemory
import Kmem
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// Memory that kmem keeps free is there for others when they need it.
final class ReclaimFromOwnersTests: XCTestCase {
  /// Allocates and frees objects of all sizes at random on two processors; all are free in the end.
  private func churn(_ system: TestSystem, seed: UInt64) {
    let kmem = system.kmem
    let type = kmem.type(named: ShortName("churn"))
    var random = SeededRandom(seed: seed)
    var live: [(UnsafeMutableRawPointer, ByteCount)] = []
    for _ in 0..<40_000 {
      system.host.runAs(processor: Int(random.below(2))) {
        if random.oneIn(2) || live.count < 10 {
          let size = ByteCount(random.oneIn(10) ? random.below(12_000) : 16 << random.below(8))
          if let object = kmem.alloc(size, type: type) { live.append((object, size)) }
        } else {
          let (object, size) = live.remove(at: Int(random.below(UInt64(live.count))))
          kmem.free(object, size: size, type: type)
        }
      }
    }
    for (object, size) in live {
      system.host.runAs(processor: Int(random.below(2))) { kmem.free(object, size: size, type: type) }
    }
  }

  /// The longest run of free frames.
  private func longestFreeRun(_ system: TestSystem) -> UInt64 {
    var (longest, run): (UInt64, UInt64) = (0, 0)
    for frame in 0..<UInt32(system.host.memorySize.rawValue >> 12) {
      let isFree =
        system.physical.record(FrameNumber(frame)) != nil
        && system.physical.whatIs(FrameNumber(frame)).role == .free
      run = isFree ? run + 1 : 0
      longest = max(longest, run)
    }
    return longest
  }

  func testARunOfNearlyAllMemoryIsGrantedAfterChurn() throws {
    for seed in historySeeds(1, count: 6) {
      for passes in [ContiguousPass.free, .launderActive] {
        let system = try TestSystem(frames: 6000, processors: 2)
        let longest = longestFreeRun(system)
        churn(system, seed: seed)
        XCTAssertGreaterThan(system.physical.count(.slab), PageCount(20), "kmem keeps nothing")
        var request = ContiguousRequest(PageCount(longest * 9 / 10))
        request.passes = passes
        let run = try system.contiguous.allocContig(request)
        XCTAssertNil(system.memory.checkInvariants(), "STRATA_SEED=\(seed)")
        system.contiguous.releaseContig(run)
      }
    }
  }

  /// A block of a high order, and single frames, need no drain by hand either.
  func testAnOrderAndFramesAreGrantedAfterChurn() throws {
    let system = try TestSystem(frames: 6000, processors: 2)
    churn(system, seed: historySeed(1))
    var frames: [FrameNumber] = []
    while let frame = try? system.physical.allocate(BlockOrder(0), role: .wired) { frames.append(frame) }
    let zones = PageCount(2)
    XCTAssertLessThanOrEqual(system.physical.count(.slab), zones)
    for frame in frames { system.physical.free(frame, BlockOrder(0)) }
    churn(system, seed: 2)
    let block = try system.physical.allocate(BlockOrder(11), role: .wired)
    system.physical.free(block, BlockOrder(11))
    XCTAssertNil(system.memory.checkInvariants())
  }

  /// An owner of its own registers a callback, and is asked step by step, as far as the caller's state permits.
  func testAnOwnersCallbackIsAskedStepByStep() throws {
    final class Owner {
      var steps: [ReclaimStep] = []
      var kept: [FrameNumber] = []
      let system: TestSystem
      init(_ system: TestSystem) { self.system = system }
    }
    let system = try TestSystem(frames: 2000)
    let owner = Owner(system)
    XCTAssertTrue(
      system.physical.addOwner(Unmanaged.passUnretained(owner).toOpaque()) { context, step in
        let owner = Unmanaged<Owner>.fromOpaque(context!).takeUnretainedValue()
        let step = ReclaimStep(rawValue: step)!
        owner.steps.append(step)
        XCTAssertFalse(owner.system.physical.mayAllocate, "an owner that is asked must not allocate")
        guard step == .allProcessors, let frame = owner.kept.popLast() else { return 0 }
        owner.system.physical.free(frame, BlockOrder(0))
        return 1
      })
    while let frame = try? system.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
      owner.kept.append(frame)
    }
    XCTAssertTrue(owner.steps.isEmpty, "interrupt priority asks no owner")
    let isRefused = withInterruptsOff {
      (try? system.physical.allocate(BlockOrder(0), role: .wired, priority: .system)) == nil
    }
    XCTAssertTrue(isRefused)
    XCTAssertEqual(owner.steps, [.surplus, .free], "no processor is asked with interrupts off")
    owner.steps = []
    // The reserve stays: the owner is asked until enough is free.
    XCTAssertThrowsError(try system.physical.allocate(BlockOrder(0), role: .wired, priority: .system))
    XCTAssertEqual(owner.steps, [.surplus, .free, .thisProcessor, .allProcessors])
    XCTAssertTrue(system.physical.mayAllocate)
    for frame in owner.kept { system.physical.free(frame, BlockOrder(0)) }
    XCTAssertNil(system.memory.checkInvariants())
  }
}
