import CPlatform
import Foundation
import HostMachine
import XCTest

@testable import MemoryPrimitives

/// A thread is inside from its entry until it leaves, other threads and interrupt handlers are not.
final class ReentryCheckTests: XCTestCase {
  private final class Shared: @unchecked Sendable { let check = ReentryCheck() }

  func testOnlyTheThreadThatEnteredIsInside() {
    let shared = Shared()
    XCTAssertFalse(shared.check.isInside)
    XCTAssertTrue(shared.check.enter())
    XCTAssertTrue(shared.check.isInside)
    let done = DispatchSemaphore(value: 0)
    let other = Thread {
      XCTAssertFalse(shared.check.isInside)
      XCTAssertTrue(shared.check.enter())
      XCTAssertTrue(shared.check.isInside)
      XCTAssertTrue(shared.check.leave())
      XCTAssertFalse(shared.check.isInside)
      done.signal()
    }
    other.start()
    done.wait()
    XCTAssertTrue(shared.check.isInside)
    XCTAssertTrue(shared.check.leave())
    XCTAssertFalse(shared.check.isInside)
  }

  func testManyThreadsMayBeInside() {
    let shared = Shared()
    DispatchQueue.concurrentPerform(iterations: 200) { _ in
      XCTAssertTrue(shared.check.enter())
      XCTAssertTrue(shared.check.leave())
    }
    XCTAssertFalse(shared.check.isInside)
  }

  func testAnInterruptHandlerIsNotInside() {
    let shared = Shared()
    XCTAssertTrue(shared.check.enter())
    cp_processor().pointee.handling += 1
    XCTAssertFalse(shared.check.isInside)
    cp_processor().pointee.handling -= 1
    XCTAssertTrue(shared.check.leave())
  }
}
