// queues: the queues of pageable pages, beside the watermarks of the page daemon.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

extension CommandDescription {
  static var queues: CommandDescription {
    CommandDescription(
      name: "queues", usage: "queues",
      about: """
        The queues of pageable pages, beside the marks at which the page daemon
        wakes and stops.
        """,
      example: "queues", question: .failure,
      arguments: .none)
  }
}

extension Shell {
  /// Pages under a name.
  private struct Named {
    let name: StaticString
    let pages: PageCount
  }

  func queues() throws(CommandError) {
    let (queues, count) = queueCounts()
    let marks: InlineArray<6, Named> = [
      Named(name: "free now", pages: physical.freeCount),
      Named(name: "cached among them", pages: physical.cachedCount),
      Named(name: "target", pages: memory.paging.freeTarget),
      Named(name: "daemon wakes at", pages: memory.paging.wakeMark),
      Named(name: "minimum", pages: physical.reserve(for: .normal)),
      Named(name: "for page-out", pages: physical.reserve(for: .system)),
    ]
    printTable(queues, count, marks)
    printQueueHints()
  }

  /// Pages by queue, wired pages, and busy ones if there are any: the first `count` are to be shown.
  private func queueCounts() -> (queues: InlineArray<6, Named>, count: Int) {
    let paging = memory.paging
    let pageable = physical.count(.pageable)
    var queues = InlineArray<6, Named>(repeating: Named(name: "busy", pages: .zero))
    var known = PageCount.zero
    for number in 0..<PageQueue.count {
      guard let queue = PageQueue(rawValue: UInt8(number)) else { continue }
      queues[number] = Named(name: queue.description, pages: paging.count(queue))
      known = known + queues[number].pages
    }
    queues[4] = Named(name: "wired", pages: paging.wiredCount)
    known = known + queues[4].pages
    // A thread that moves a page or writes it out has removed it from its queue.
    if pageable > known { queues[5] = Named(name: "busy", pages: pageable - known) }
    return (queues, queues[5].pages > .zero ? 6 : 5)
  }

  /// Prints the queues and their sum for a person, with the watermarks beside them.
  private func printTable(
    _ queues: InlineArray<6, Named>, _ count: Int, _ marks: InlineArray<6, Named>
  ) {
    let table = table("queue")
    table.column("queue", .text)
    table.column("pages", .figure)
    table.column("size", .figure, key: "bytes")
    table.beside("watermark")
    table.column("", .text, for: .people)
    table.column("watermark", .text)
    table.column("frames", .figure)
    for i in 0..<max(count + 1, marks.count) {
      let queue = i < count ? queues[i] : Named(name: "pageable", pages: physical.count(.pageable))
      table.begin()
      table.part(for: i < count ? .everyone : .people)
      table.text(queue.name)
      table.count(queue.pages.rawValue)
      table.size(queue.pages.bytes)
      table.part(for: i < marks.count ? .everyone : .people)
      table.empty()
      if i < marks.count {
        table.text(marks[i].name)
        table.count(marks[i].pages.rawValue)
      } else {
        table.empty()
        table.empty()
      }
      table.end()
    }
    table.finish()
  }

  /// Prints the sentences behind the table, and the command to type when something is wrong.
  private func printQueueHints() {
    let (free, minimum) = (physical.freeCount, physical.reserve(for: .normal))
    let unswappable = memory.paging.count(.unswappable)
    if physical.count(.pageable) == .zero {
      let hasObjects = memory.paging.figures.objects > 0
      print(
        hasObjects ? "No page is in memory. Type: objects" : "There is no pageable page yet. Type: dirty 10%")
    }
    if unswappable > .zero {
      print("! \(count: unswappable.rawValue, "dirty page") without a swap slot must stay. Type: swap")
    }
    if free < minimum {
      print(
        "! Normal requests leave \(count: minimum.rawValue) frames, and fewer are free. Type: launder daemon")
    }
  }
}
