// dirty: fills memory with stamped pages.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads

extension CommandDescription {
  static var dirty: CommandDescription {
    CommandDescription(
      name: "dirty", usage: "dirty SHARE | SIZE | free",
      about: """
        Fills a share of memory with dirty pageable pages, each with a stamp,
        scattered over memory; with swap the share may be more than all of
        it. What fits stays where memory ends, and at Ctrl-C what is filled so
        far. free frees all of them.
        """,
      example: "dirty 90%", question: .trial,
      completion: .words("free"))
  }
}

extension Shell {
  var fills: DirtyFills { state.pointee.fills }

  func dirty(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "How much? Usage: \(arguments.usage); as in dirty 90%, dirty 64M.")
    }
    if word.bytes == "free" {
      try arguments.end()
      try freeFills()
      return
    }
    let count = try pages(word, arguments)
    try arguments.end()
    guard count > .zero else { throw refuse(word, "less than a page") }
    guard count <= DirtyPages.share(1000, of: physical) else {
      throw refuse(word, "too large: 1000 % of memory are the most")
    }
    guard fills.count < DirtyFills.capacity else {
      throw fail("\(DirtyFills.capacity) fills are the most. dirty free frees all of them.")
    }
    do throws(FillFailure) {
      try fill(count)
    } catch {
      report(error)
      try fillWhatFits(error)
    }
  }

  /// Fills and keeps `count` pages, and prints what that cost, behind `sentence`.
  private func fill(_ count: PageCount, saying sentence: Line? = nil) throws(FillFailure) {
    let (before, start) = (memory.paging.figures, cp_cycles())
    let fill = try DirtyPages.fill(count, seed: state.pointee.fills.nextSeed(), on: memory, access) {
      pace("dirty", $0, of: count.rawValue, "pages")
    }
    let cycles = cp_cycles() &- start
    state.pointee.fills.keep(fill)
    if let sentence { print(sentence) }
    report(fill, before, cycles)
  }

  /// Keeps what fits, after a fill for which memory did not suffice.
  private func fillWhatFits(_ failure: FillFailure) throws(CommandError) {
    do throws(FillFailure) {
      guard let fitting = failure.fitting else { throw failure }
      try fill(fitting, saying: "The pages that fit are filled, and stay; dirty free frees them.")
    } catch {
      print("The pages are freed again; \(count: physical.freeCount.rawValue, "frame") are free.")
      throw .failed
    }
    if memory.paging.swap.device == nil {
      print("! There is no swap to write to: dirty less, or boot with SWAP=. Type: swap")
    } else {
      print("! Memory and swap are full. Type: swap")
    }
    throw .failed
  }

  /// A share of all frames in percent, or a size.
  private func pages(_ word: Word, _ arguments: Arguments) throws(CommandError) -> PageCount {
    guard word.bytes.count > 1, word.bytes[word.bytes.count - 1] == UInt8(ascii: "%") else {
      return try arguments.size(word).pagesRoundedUp
    }
    let figure = arguments.part(of: word, from: 0, to: word.bytes.count - 1)
    let percent = try arguments.number(figure)
    guard percent <= 1000 else { throw refuse(word, "too large: 1000 % of memory are the most") }
    return DirtyPages.share(percent, of: physical)
  }

  /// Prints why a fill ended early.
  func report(_ failure: FillFailure) {
    let page: Line =
      "Page \(count: failure.fitted.rawValue + 1) of \(count: failure.asked.rawValue)"
    guard failure.error == .noMemory else {
      _ = fail("\(page): \(failure.error.description).")
      return
    }
    let reserve = physical.reserve(for: .normal).rawValue
    _ = fail("\(page): memory is full, but for the reserve of \(count: reserve, "frame").")
  }

  private func report(_ fill: DirtyPages, _ before: PagingFigures, _ cycles: UInt64) {
    let now = memory.paging.figures
    let resident = min(memory.paging.residentCount(fill.object), fill.filled)
    let away = fill.filled - resident
    let written = now.written - before.written
    let wasStopped = isStopped("Stopped; the pages filled so far stay.")
    printDone {
      report("dirty") { report in
        report.write(
          "\(key: "pages", count: fill.filled.rawValue, "page"), \(key: "bytes", size: fill.filled.bytes), each stamped: \(key: "resident", count: resident.rawValue) in memory, \(key: "swapped", count: away.rawValue) in swap."
        )
        report.keep(
          "\(key: "address", only: .address(fill.address))\(key: "object", only: UInt64(fill.object.number))")
        let wrote: Line = written == 0 ? "Nothing was written." : "\(count: written, "page") went to swap."
        report.write(
          "\(wrote) \(key: "free", count: physical.freeCount.rawValue, "frame") are free. Type: contig 2M\(key: "written", only: written)",
          if: !wasStopped)
        report.keep(cost: cycles)
      }
    }
  }

  private func freeFills() throws(CommandError) {
    let count = fills.count
    for i in 0..<count {
      let wired = memory.paging.figures(of: fills[i].object).wired.rawValue
      if wired > 0 {
        throw fail(
          "\(count: wired, "page") from \(fills[i].address) on are wired: unwire them first.")
      }
    }
    let pages = state.pointee.fills.release(memory)
    printEnd { reportFreed(count, pages) }
  }

  private func reportFreed(_ count: Int, _ pages: PageCount) {
    report("dirty_freed") { report in
      report.write("Nothing is filled. As in: dirty 90%", if: count == 0)
      report.write(
        "Freed \(key: "pages", count: pages.rawValue, "page") of \(key: "fills", count: UInt64(count), "fill"). \(key: "free", count: physical.freeCount.rawValue, "frame") are free.",
        if: count > 0)
    }
  }
}
