import CPlatform
import HostMachine
import MemoryPrimitives
import Synchronization
import XCTest

final class HostProcessorTests: XCTestCase {
  func testAnInterruptRunsOnlyWhereInterruptsAreSwitchedOnAgain() {
    let host = SimulatedMachine(memory: .mebibytes(1))
    var entered = 0
    var inside = false
    host.withInterrupts(
      seed: 1, oneIn: 2,
      handler: {
        XCTAssertFalse(inside); entered += 1
      }
    ) {
      for _ in 0..<100 {
        withInterruptsOff {
          inside = true
          withInterruptsOff {}
          inside = false
        }
      }
    }
    XCTAssertTrue((20...80).contains(entered), "\(entered) of 100 windows")
  }

  func testAThreadStaysItsProcessorAfterAnInnerEntry() {
    let host = SimulatedMachine(memory: .mebibytes(1), processors: 2)
    let machine = host.machine
    let words = UnsafeMutablePointer<Atomic<UInt>>.allocate(capacity: 3)
    for i in 0..<3 { (words + i).initialize(to: Atomic(0)) }
    defer { words.deallocate() }
    nonisolated(unsafe) let (isReady, ranOn, isDone) = (words, words + 1, words + 2)
    nonisolated(unsafe) var thread: UInt = 0
    host.onThreads(2) { me in
      if me == 1 {
        thread = UInt(pthread_self())
        host.runAs(processor: 1) {}
        isReady.pointee.store(1, ordering: .releasing)
        while isDone.pointee.load(ordering: .acquiring) == 0 { withInterruptsOff {} }
      } else {
        while isReady.pointee.load(ordering: .acquiring) == 0 { sched_yield() }
        machine.run(on: ProcessorIndex(1), UnsafeMutableRawPointer(ranOn)) {
          $0.assumingMemoryBound(to: Atomic<UInt>.self).pointee.store(
            UInt(pthread_self()), ordering: .releasing)
        }
        isDone.pointee.store(1, ordering: .releasing)
      }
    }
    XCTAssertEqual(ranOn.pointee.load(ordering: .relaxed), thread)
  }

  func testTwoProcessorsAskEachOtherWithoutWaitingForEver() {
    let host = SimulatedMachine(memory: .mebibytes(1), processors: 3)
    let ran = UnsafeMutablePointer<Atomic<Int>>.allocate(capacity: 1)
    ran.initialize(to: Atomic(0))
    defer { ran.deallocate() }
    nonisolated(unsafe) let argument = UnsafeMutableRawPointer(ran)
    let machine = host.machine
    host.onThreads(2) { me in
      for turn in 0..<200 {
        machine.run(on: ProcessorIndex(UInt32(turn % 3)), argument) {
          XCTAssertFalse(cp_interrupts_enabled())
          $0.assumingMemoryBound(to: Atomic<Int>.self).pointee.add(1, ordering: .relaxed)
        }
      }
    }
    XCTAssertEqual(ran.pointee.load(ordering: .relaxed), 400)
  }

  func testClaimsAreReportedAtOnceOrWhenNoLockIsHeld() {
    let host = SimulatedMachine(memory: .mebibytes(1))
    let lock = SpinLock(.physicalDomain)
    let words = UnsafeMutableRawPointer.allocate(byteCount: 16, alignment: 8)
    defer { words.deallocate() }
    for moment in [ClaimMoment.atOnce, .unlocked] {
      var reported: [Int] = []
      var isLocked = false
      host.withClaims(
        moment,
        handler: { word in
          reported.append(word - UnsafeRawPointer(words))
          XCTAssertFalse(cp_interrupts_enabled())
          XCTAssertEqual(holdsNoSpinLock(), moment == .unlocked || !isLocked)
          // Unheard.
          reportClaim(words + 12)
        }
      ) {
        let interrupts = lock.lock()
        isLocked = true
        reportClaim(words)
        reportClaim(words + 4)
        XCTAssertEqual(reported, moment == .atOnce ? [0, 4] : [])
        isLocked = false
        lock.unlock(interrupts)
        XCTAssertEqual(reported, [0, 4])
        reportClaim(words + 8)
        XCTAssertEqual(reported, [0, 4, 8])
      }
      reportClaim(words)
      XCTAssertEqual(reported.count, 3, "outside of the body")
    }
  }
}
