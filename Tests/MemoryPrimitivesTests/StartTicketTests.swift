import MemoryPrimitives
import Synchronization
import XCTest

/// A processor that is called, and the one that calls it, in every order of their steps.
final class StartTicketTests: XCTestCase {
  private let word = UnsafeMutablePointer<Atomic<UInt64>>.allocate(capacity: 1)
  override func setUp() { word.initialize(to: Atomic(0)) }
  deinit { word.deallocate() }

  /// What boot/processors.asm does.
  private func claim(_ identity: UInt32) -> Bool {
    let called = UInt64(1) << 32 | UInt64(identity)
    let claimed = UInt64(2) << 32 | UInt64(identity)
    return word.pointee.compareExchange(expected: called, desired: claimed, ordering: .sequentiallyConsistent)
      .exchanged
  }

  func testAProcessorThatComesInTime() {
    let ticket = StartTicket(word)
    for identity: UInt32 in [0, 1, 254, 255, 0xffff_fffe] {
      ticket.call(identity)
      XCTAssertEqual(ticket.state, .called)
      XCTAssertTrue(claim(identity))
      XCTAssertEqual(ticket.state, .claimed)
      XCTAssertTrue(ticket.join(identity))
      XCTAssertEqual(ticket.state, .joined)
      XCTAssertEqual(ticket.withdraw(identity), .joined)
      XCTAssertEqual(ticket.state, .unused)
    }
  }

  func testAnotherProcessorGetsNoTicket() {
    let ticket = StartTicket(word)
    ticket.call(3)
    XCTAssertFalse(claim(2))
    XCTAssertFalse(ticket.join(2))
    XCTAssertFalse(ticket.join(3), "not without a claim")
    XCTAssertEqual(ticket.withdraw(3), .noAnswer)
    XCTAssertFalse(claim(3))
  }

  /// Two processors are called in turn, each with a preparation of its own unless the first one's came back. Whatever
  /// the order of the steps, no preparation has two owners and each processor joins at most once.
  func testEveryOrderOfTheSteps() {
    enum Step: CaseIterable { case claimFirst, joinFirst, claimSecond, joinSecond, endFirst, endSecond }
    var orders = 0
    func visit(_ steps: [Step]) {
      if steps.count == Step.allCases.count { return check(steps) }
      for step in Step.allCases where !steps.contains(step) {
        // Each party takes its own steps in order; the second call comes after the end of the first.
        if step == .joinFirst && !steps.contains(.claimFirst) { continue }
        if step == .joinSecond && !steps.contains(.claimSecond) { continue }
        if step == .endSecond && !steps.contains(.endFirst) { continue }
        visit(steps + [step])
      }
    }
    func check(_ steps: [Step]) {
      orders += 1
      word.pointee.store(0, ordering: .relaxed)
      let ticket = StartTicket(word)
      var (first, second): (StartTicket.Outcome?, StartTicket.Outcome?)
      var (claimed, runs) = (Set<UInt32>(), Set<UInt32>())
      func take(_ identity: UInt32, claiming: Bool) {
        if claiming {
          if claim(identity) { claimed.insert(identity) }
        } else if claimed.contains(identity), ticket.join(identity) {
          runs.insert(identity)
        }
      }
      ticket.call(1)
      for step in steps {
        switch step {
        case .claimFirst: take(1, claiming: true)
        case .joinFirst: take(1, claiming: false)
        case .claimSecond: take(2, claiming: true)
        case .joinSecond: take(2, claiming: false)
        case .endFirst:
          first = ticket.withdraw(1)
          ticket.call(2)
        case .endSecond: second = ticket.withdraw(2)
        }
      }
      for (identity, outcome) in [(UInt32(1), first), (2, second)] {
        XCTAssertEqual(outcome == .joined, runs.contains(identity), "\(steps)")
        XCTAssertEqual(outcome == .noAnswer, !claimed.contains(identity), "\(steps)")
      }
      XCTAssertEqual(ticket.state, .unused)
    }
    visit([])
    XCTAssertEqual(orders, 90)
  }
}
