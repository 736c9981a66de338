// wire: pages that must stay where they are.

import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

extension CommandDescription {
  static var wire: CommandDescription {
    CommandDescription(
      name: "wire", usage: "wire ADDRESS+SIZE [holes]",
      about: """
        Wires the pages of a range: they stay where they are until unwire.
        dirty+SIZE is a range too: the first of the pages that dirty filled last.
        All or none: a part that is not pageable refuses the whole, but holes
        passes over such parts.
        """,
      example: "wire dirty+64K", after: "dirty 1M", question: .trial,
      completion: .words("holes"))
  }
}

extension Shell {

  func wire(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "A range is missing; usage: \(arguments.usage). objects N shows the ranges of an object.")
    }
    let touched = try touched(word, arguments)
    var holes = HolePolicy.forbidden
    if let word = arguments.next() {
      guard word.bytes == "holes" else {
        throw arguments.notUnderstood(word)
      }
      holes = .allowed
    }
    try arguments.end()
    let (covered, hole) = covered(touched, of: memory.paging.ranges)
    if covered == .zero { throw refuse(word, "no pageable memory is there; objects N shows where it is") }
    if let hole, holes == .forbidden {
      throw refuse(word, "no pageable memory is at \(hole); holes passes over that")
    }
    do throws(PagingError) {
      try memory.paging.wire(touched.first, touched.count, holes: holes)
    } catch {
      switch error {
      case .noMemory:
        throw fail("No frame is free for one of its pages. Nothing is wired.")
      case .inputOutput, .corrupt:
        throw fail("A page could not be brought in: \(error.description). Nothing is wired.")
      case .tooManyWires:
        throw fail("A page of the range is wired 4,095 times already. Nothing is wired.")
      case .noAddressSpace, .badConstraint, .notPageable, .protection, .tooManyHolds:
        throw fail("Paging refuses it: \(error.description). Nothing is wired.")
      }
    }
    printEnd { reportWires("wire", "Wired", touched, covered) }
  }
}
