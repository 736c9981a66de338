// Finds the stack that a guard page belongs to: one of the image, or of a thread.

import CPlatform

enum Stacks {
  /// The stack right above the page that holds `address`.
  static func span(guardedAt address: UInt64) -> cp_span? {
    Image.stack(guardedAt: address) ?? Scheduler.stack(guardedAt: address)
  }
}
