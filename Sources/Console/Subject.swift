// What the console looks at: one system, and what its boot knew.

import CPlatform
import MemoryPrimitives

/// The system at the console's feet. A value of handles.
public struct Subject {
  public var statistics: Statistics

  public init(statistics: Statistics) {
    self.statistics = statistics
  }
}
