import MemoryPrimitives
import XCTest

/// A list of links is held against an array, and a layout against the rules that it states.
final class IntrusiveListTests: XCTestCase {
  /// Links in two arrays, by number of the member.
  final class Links: ListLinks {
    var next: [FrameNumber]
    var previous: [FrameNumber]
    init(_ count: Int) {
      next = Array(repeating: FrameNumber(77), count: count)
      previous = next
    }
    func next(of member: FrameNumber) -> FrameNumber { next[Int(member.rawValue)] }
    func previous(of member: FrameNumber) -> FrameNumber { previous[Int(member.rawValue)] }
    func setNext(of member: FrameNumber, to link: FrameNumber) { next[Int(member.rawValue)] = link }
    func setPrevious(of member: FrameNumber, to link: FrameNumber) { previous[Int(member.rawValue)] = link }
  }

  func check(_ list: IntrusiveList<FrameNumber>, _ model: [UInt32], _ links: Links) {
    var forwards: [UInt32] = []
    var at = list.first
    while at != .none && forwards.count <= model.count {
      forwards.append(at.rawValue)
      at = links.next(of: at)
    }
    var backwards: [UInt32] = []
    at = list.last
    while at != .none && backwards.count <= model.count {
      backwards.append(at.rawValue)
      at = links.previous(of: at)
    }
    XCTAssertEqual(forwards, model)
    XCTAssertEqual(backwards, model.reversed())
    XCTAssertEqual(list.count, UInt64(model.count))
    XCTAssertEqual(list.isEmpty, model.isEmpty)
  }

  /// Every sequence of five operations on four members.
  func testEverySequenceOfOperationsEndsAsAnArrayDoes() {
    let members = UInt32(4)
    // Operations: append, prepend and remove each member, pop the first, replace the first by a member.
    let kinds = 4 * Int(members) + 1
    var sequences = 0
    for number in 0..<kinds * kinds * kinds * kinds * kinds {
      let links = Links(Int(members))
      var list = IntrusiveList<FrameNumber>()
      var model: [UInt32] = []
      var code = number
      var isPossible = true
      for _ in 0..<5 where isPossible {
        let operation = code % kinds
        code /= kinds
        let member = UInt32(operation % Int(members))
        let isIn = model.contains(member)
        switch operation / Int(members) {
        case 0 where !isIn:
          list.append(FrameNumber(member), in: links)
          model.append(member)
        case 1 where !isIn:
          list.prepend(FrameNumber(member), in: links)
          model.insert(member, at: 0)
        case 2 where isIn:
          list.remove(FrameNumber(member), in: links)
          model.removeAll { $0 == member }
        case 3 where !isIn && !model.isEmpty:
          list.replace(FrameNumber(model[0]), by: FrameNumber(member), in: links)
          model[0] = member
        case 4:
          XCTAssertEqual(list.popFirst(in: links).rawValue, model.first ?? FrameNumber.none.rawValue)
          model = Array(model.dropFirst())
        default: isPossible = false
        }
      }
      if isPossible {
        check(list, model, links)
        sequences += 1
      }
    }
    XCTAssertGreaterThan(sequences, 1000)
  }
}
