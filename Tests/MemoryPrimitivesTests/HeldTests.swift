import HostMachine
import MemoryPrimitives
import XCTest

/// A lock that crosses a call is released once, where its guard ends.
final class HeldTests: XCTestCase {
  struct Pair {
    var a = 0
    var b = 0
  }
  let pair = Locked(.physicalDomain, Pair())

  func addAndRelease(_ held: consuming Held<Pair>) { held.value.b += 1 }

  func testAGuardReleasesItsLockWhenItGoesOutOfScope() {
    do {
      let held = pair.acquire()
      held.value.a += 1
      XCTAssertFalse(holdsNoSpinLock())
    }
    XCTAssertTrue(holdsNoSpinLock())
    // Free: it can be taken again.
    XCTAssertEqual(pair.withLock { $0.a }, 1)
  }

  func testAGuardThatIsPassedOnIsReleasedByTheCallee() {
    let held = pair.acquire()
    held.value.a = 5
    addAndRelease(held)
    XCTAssertTrue(holdsNoSpinLock())
    XCTAssertEqual(pair.withLock { $0.a + $0.b }, 6)
  }

  func testAGuardCanBeReleasedAndTakenAgain() {
    var held = pair.acquire()
    held.value.a = 1
    held.release()
    XCTAssertTrue(holdsNoSpinLock())
    held = pair.acquire()
    held.value.a += 1
    held.release()
    XCTAssertEqual(pair.withLock { $0.a }, 2)
  }
}
