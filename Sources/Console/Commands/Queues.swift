// queues: the queues of pageable pages, beside the marks of the page daemon.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

extension Shell {
  /// Pages under a name.
  private struct Named {
    let name: StaticString
    let pages: PageCount
  }

  func queues() throws(CommandError) {
    let paging = memory.paging
    let pageable = physical.count(.pageable)
    let free = physical.freeCount
    let minimum = physical.reserve(for: .normal)
    let unswappable = paging.count(.unswappable)
    var queues = InlineArray<6, Named>(repeating: Named(name: "busy", pages: .zero))
    var known = PageCount.zero
    for number in 0..<PageQueue.count {
      guard let queue = PageQueue(rawValue: UInt8(number)) else { continue }
      queues[number] = Named(name: queue.description, pages: paging.count(queue))
      known = known + queues[number].pages
    }
    queues[4] = Named(name: "wired", pages: paging.wiredCount)
    known = known + queues[4].pages
    // Who moves a page or writes it out has taken it out of its queue.
    if pageable > known { queues[5] = Named(name: "busy", pages: pageable - known) }
    let marks: InlineArray<6, Named> = [
      Named(name: "free now", pages: free),
      Named(name: "cached among them", pages: physical.cachedCount),
      Named(name: "target", pages: paging.freeTarget),
      Named(name: "daemon wakes at", pages: paging.wakeMark),
      Named(name: "minimum", pages: minimum),
      Named(name: "for page-out", pages: physical.reserve(for: .system)),
    ]
    let count = queues[5].pages > .zero ? 6 : 5

    if isJSON {
      for i in 0..<count {
        row("queue") { row in
          row.field("queue", text: Line(queues[i].name))
          row.field("pages", queues[i].pages.rawValue)
          row.field("bytes", queues[i].pages.bytes.rawValue)
        }
      }
      for i in 0..<marks.count {
        row("watermark") { row in
          row.field("watermark", text: Line(marks[i].name))
          row.field("frames", marks[i].pages.rawValue)
        }
      }
      return
    }
    let table = table("queue")
    table.column("queue", .text)
    table.column("pages", .figure)
    table.column("size", .figure)
    table.column("", .text)
    table.column("watermark", .text)
    table.column("frames", .figure)
    for i in 0..<count + 1 {
      let queue = i < count ? queues[i] : Named(name: "pageable", pages: pageable)
      table.begin()
      table.text(queue.name)
      table.count(queue.pages.rawValue)
      table.size(queue.pages.bytes)
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
    if pageable == .zero {
      let hasObjects = paging.figures.objects > 0
      print(
        hasObjects ? "No page is in memory. Type: objects" : "There is no pageable page yet. Type: dirty 10%")
    }
    if unswappable > .zero {
      print("! \(count: unswappable.rawValue, "dirty page") without room in swap must stay. Type: swap")
    }
    if free < minimum {
      print(
        "! Normal requests leave \(count: minimum.rawValue) frames, and fewer are free. Type: launder daemon")
    }
  }
}
