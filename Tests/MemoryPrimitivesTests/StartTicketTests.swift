import MemoryPrimitives
import Synchronization
import XCTest

/// A processor that is called, and the one that calls it, in every order of their steps.
final class StartTicketTests: XCTestCase {
  private let word = UnsafeMutablePointer<Atomic<UInt64>>.allocate(capacity: 1)
  override func setUp() { word.initialize(to: Atomic(0)) }
  deinit { word.deallocate() }

  /// Claims as boot/processors.asm does.
  private func claim(_ identity: UInt32) -> Bool {
    let called = UInt64(1) << 32 | UInt64(identity)
    let claimed = UInt64(2) << 32 | UInt64(identity)
    return word.pointee.compareExchange(expected: called, desired: claimed, ordering: .sequentiallyConsistent)
      .exchanged
  }

  /// Checks as boot/processors.asm does whether its claim is still valid.
  private func isClaimed(by identity: UInt32) -> Bool {
    word.pointee.load(ordering: .sequentiallyConsistent) == UInt64(2) << 32 | UInt64(identity)
  }

  func testAProcessorThatComesInTimeGetsItsTicket() {
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

  /// The order of a called processor's two steps after its claim: it reads the caller's record, and checks whether it
  /// still has the claim.
  private enum Reading { case thenClaim, afterClaim }

  private enum Step: CaseIterable {
    case claimFirst, readFirst, checkFirst, joinFirst
    case claimSecond, readSecond, checkSecond, joinSecond
    case endFirst, prepareSecond, callSecond, endSecond
  }

  private struct Called {
    let identity: UInt32
    var hasClaimed = false
    var goesOn = false
    var read: Int?
    /// The preparation on which it runs, from its check on.
    var uses: Int?
    var hasJoined = false
    var outcome: StartTicket.Outcome?
  }

  /// Two processors are called in turn, and the record that both read names their preparation: the first one's again if
  /// it came back. Gives the number of orders of their steps, and one order after which a preparation has two owners.
  private func orders(_ reading: Reading) -> (count: Int, broken: [String]?) {
    let middle: [[Step]] =
      reading == .thenClaim
      ? [[.readFirst, .checkFirst], [.readSecond, .checkSecond]]
      : [[.checkFirst, .readFirst], [.checkSecond, .readSecond]]
    let parties: [[Step]] = [
      [.claimFirst] + middle[0] + [.joinFirst], [.claimSecond] + middle[1] + [.joinSecond],
      [.endFirst, .prepareSecond, .callSecond, .endSecond],
    ]
    var (count, broken) = (0, [String]?.none)
    func visit(_ steps: [Step], _ taken: [Int]) {
      if steps.count == Step.allCases.count { return check(steps) }
      for party in parties.indices where taken[party] < parties[party].count {
        var taken = taken
        taken[party] += 1
        visit(steps + [parties[party][taken[party] - 1]], taken)
      }
    }
    func check(_ steps: [Step]) {
      count += 1
      if !endsWell(steps, reading) { broken = steps.map { "\($0)" } }
    }
    visit([], [0, 0, 0])
    return (count, broken)
  }

  /// Takes the steps in this order, and answers whether no preparation has two owners afterwards.
  private func endsWell(_ steps: [Step], _ reading: Reading) -> Bool {
    word.pointee.store(0, ordering: .relaxed)
    let ticket = StartTicket(word)
    var (first, second) = (Called(identity: 1), Called(identity: 2))
    var record = 1
    func claim(_ called: inout Called) {
      called.hasClaimed = self.claim(called.identity)
      called.goesOn = called.hasClaimed
    }
    func read(_ called: inout Called) {
      guard called.goesOn else { return }
      called.read = record
      if reading == .afterClaim { called.uses = record }
    }
    func keep(_ called: inout Called) {
      guard called.goesOn else { return }
      called.goesOn = isClaimed(by: called.identity)
      if called.goesOn { called.uses = called.read }
    }
    func join(_ called: inout Called) {
      if called.goesOn { called.hasJoined = ticket.join(called.identity) }
    }
    ticket.call(1)
    for step in steps {
      switch step {
      case .claimFirst: claim(&first)
      case .readFirst: read(&first)
      case .checkFirst: keep(&first)
      case .joinFirst: join(&first)
      case .claimSecond: claim(&second)
      case .readSecond: read(&second)
      case .checkSecond: keep(&second)
      case .joinSecond: join(&second)
      case .endFirst: first.outcome = ticket.withdraw(1)
      case .prepareSecond: record = first.outcome == .noAnswer ? 1 : 2
      case .callSecond: ticket.call(2)
      case .endSecond: second.outcome = ticket.withdraw(2)
      }
    }
    for called in [first, second] {
      if (called.outcome == .joined) != called.hasJoined
        || (called.outcome == .noAnswer) == called.hasClaimed
        || called.hasJoined && called.uses == nil
      {
        return false
      }
    }
    // The first one's preparation is its own unless it was returned, and then it is the second one's alone.
    if let uses = first.uses, uses != 1 || first.outcome == .noAnswer { return false }
    if let uses = second.uses, uses == first.uses || uses != record { return false }
    return ticket.state == .unused
  }

  /// In every order of the steps, no preparation has two owners and each processor joins at most once.
  func testEveryOrderOfTheStepsEndsWell() {
    let (count, broken) = orders(.thenClaim)
    XCTAssertEqual(count, 34_650)
    XCTAssertNil(broken)
  }

  /// A processor that reads the record after it looked at its claim may run on the next one's preparation.
  func testARecordThatIsReadAfterTheClaimMayBeTheNextOnes() {
    XCTAssertNotNil(orders(.afterClaim).broken)
  }
}
